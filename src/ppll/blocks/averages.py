"""Moving averages of a block's parameters, with which it is evaluated and used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["AVERAGE", "Averages", "averages_in"]

AVERAGE: Final = ".average"
"""Ending of an average's name, behind that of its parameter."""


class Averages:
    """Exponential moving averages, from the first values on.

    After update number t an average is ``d * average + (1 - d) * parameter`` with ``d =
    min(decay, (1 + t) / (10 + t))``: first values weigh little after a few updates, however slow
    the decay. It is a function of the step, so nothing is counted.

    Args:
        parameters: What is averaged, by name; starts from the values that they have.
        decay: Largest d, 0 to below 1.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self._decay = decay
        self._parameters = dict(parameters)
        with torch.no_grad():
            self._averages = {name: p.clone() for name, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """Take in the parameters after update number ``step``, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._averages.values()), list(self._parameters.values()), 1 - decay
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters have the averages' values inside, and their own again afterwards.

        Values are exchanged, not copied; no graph of the parameters may be open.
        """
        own = {name: parameter.data for name, parameter in self._parameters.items()}
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(own)

    @contextmanager
    def copied_in_place(self) -> Iterator[None]:
        """The same where the parameters' memory is looked at from elsewhere: values are copied."""
        own = {name: parameter.clone() for name, parameter in self._parameters.items()}
        self._copy(self._averages)
        try:
            yield
        finally:
            self._copy(own)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The averages under the names of their parameters: ``NAME.average``."""
        for name, average in self._averages.items():
            yield name + AVERAGE, average

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``named`` gave; an average that is not there starts from its parameter."""
        with torch.no_grad():
            for name, average in self._averages.items():
                average.copy_(tensors.get(name + AVERAGE, self._parameters[name]))

    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data = values[name]

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(values[name])


def averages_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that are averages."""
    return {name: tensor for name, tensor in tensors.items() if name.endswith(AVERAGE)}

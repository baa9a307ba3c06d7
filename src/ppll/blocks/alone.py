"""What a block asks of its replicas, and the answers where it has none.

Learning knows this much of other processes; who is there, and how they are reached, is known to
``replicas/exchange.py`` and ``replicas/sharding.py``, which a rank gives to its blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from ppll.blocks.averages import Averages
from ppll.blocks.modules import BlockModules

__all__ = ["Alone"]


class Alone:
    """What a block without replicas has in common with them: only its own."""

    def kept(self, modules: BlockModules) -> dict[str, nn.Parameter]:
        """What the optimizer updates, by name."""
        return dict(modules.named_parameters())

    def load(self, modules: BlockModules, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved parameters and buffers.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        modules.load(tensors)

    def agree(self, *, leaves_out: bool) -> bool:
        """Before a backward pass: whether the batch is left out."""
        return leaves_out

    def begin(self) -> None:
        """The last backward pass of a batch begins."""

    def gather(self, *, leaves_out: bool) -> bool:
        """Whether the batch is left out, as ``Exchange.gather``."""
        return leaves_out

    def total(self, counts: Tensor) -> Tensor:
        """The counts as they are."""
        return counts

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """That of a block's whole gradient (scalar)."""
        return nn.utils.get_total_norm(list(gradients.values()))

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Parameters, buffers and what goes with parameters, by name, as one replica has them."""
        return iter(named)

    def own(self, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """What this replica keeps of them."""
        return dict(named)

    def evaluated(self, averages: Averages | None) -> AbstractContextManager[None]:
        """An evaluation, in every replica: with the averages in place of the parameters, where
        there are some."""
        return nullcontext() if averages is None else averages.in_place()

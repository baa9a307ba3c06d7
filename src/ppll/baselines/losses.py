"""The losses of a rank's batches, which stay on its device until somebody looks at them."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from ppll.baselines.work import Part

__all__ = ["Losses"]


class Losses:
    """Losses in the order of the batches, looked at as often as the part says.

    To look at a number on a GPU is to wait for all work before it.

    Args:
        part: Whose losses; it is asked whether to go on from each.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._waiting: list[Tensor] = []
        self.values = array("d")
        """Those that were looked at."""

    def add(self, loss: Tensor) -> None:
        """Take a batch's loss, and look if it is time.

        Raises:
            PpllError: The run is not to go on from one of them.
        """
        self._waiting.append(loss)
        if len(self._waiting) == self._part.looks_every:
            self.look()

    def look(self) -> None:
        """Look at those that wait, if any do.

        Raises:
            PpllError: The run is not to go on from one of them.
        """
        if not self._waiting:
            return
        values = torch.stack(self._waiting).tolist()
        self._waiting.clear()
        for value in values:
            self.values.append(value)
            self._part.check(value, len(self.values))

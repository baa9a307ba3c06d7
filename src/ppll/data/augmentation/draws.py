"""Numbers that were drawn for samples: made for a whole epoch, used a batch at a time.

Every one is a hash of the seed, the epoch and the index of its sample, so none depends on which
others are drawn with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppll.uploads import upload

__all__ = ["Draws", "Numbers", "Samples"]

Samples = npt.NDArray[np.int64]
Numbers = Mapping[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]]
"""By name, one number a sample: (N)."""


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for some samples, where it is needed.

    Attributes:
        samples: Index of every sample (N), on the host.
        rows: The same on the device.
        numbers: By name, one number a sample (N), on the device.
    """

    samples: Samples
    rows: Tensor
    numbers: Mapping[str, Tensor]

    @classmethod
    def on(cls, device: torch.device, samples: Samples, numbers: Numbers) -> Self:
        """Bring what was drawn to a device, without waiting for it."""
        brought = {name: upload(torch.from_numpy(n), device) for name, n in numbers.items()}
        return cls(samples, upload(torch.from_numpy(samples), device), brought)

    def part(self, start: int, stop: int) -> Self:
        """Views of what was drawn for the samples from ``start`` to before ``stop``."""
        numbers = {name: tensor[start:stop] for name, tensor in self.numbers.items()}
        return type(self)(self.samples[start:stop], self.rows[start:stop], numbers)

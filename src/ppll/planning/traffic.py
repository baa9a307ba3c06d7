"""How many bytes blocks send each other for a training message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, Self

import torch
from torch import Tensor

from ppll.blocks.lean import FeaturesType, num_bytes
from ppll.message import FEATURES
from ppll.methods import BlockSite, Method
from ppll.methods.base import late_shapes_of
from ppll.planning.pieces import Piece

__all__ = ["Traffic"]

_FLOAT_BYTES: Final = torch.float32.itemsize


@dataclass(frozen=True)
class Traffic:
    """What goes from block to block.

    Attributes:
        method: Of the blocks.
        features_type: In what features travel; as they are computed without.
        num_samples: Of a message.
        input_bytes: Of the network's input.
        beside_bytes: Of what the loader adds to it, which every block hands on: targets, and fields
            that the method asks for.
    """

    method: Method
    features_type: FeaturesType | None
    num_samples: int
    input_bytes: int
    beside_bytes: int

    @classmethod
    def of_message(
        cls, fields: Mapping[str, Tensor], method: Method, features_type: FeaturesType | None
    ) -> Self:
        """Of messages like the one with these fields (N, ...), as the loader makes them."""
        inputs = fields[FEATURES]
        beside_bytes = sum(t.nbytes for name, t in fields.items() if name != FEATURES)
        return cls(method, features_type, len(inputs), inputs.nbytes, beside_bytes)

    @property
    def carried_bytes(self) -> int:
        """What of the network's input goes on beyond the first block."""
        return self.input_bytes if self.method.carries_input else 0

    def behind(self, layer: Piece, site: BlockSite) -> dict[str, int]:
        """What ``LayerCosts`` has of a layer that was run: of a block that ends with it there.

        Behind the network's last layer is no cut, so that no method is asked what it sends there:
        it is the layer's output.
        """
        if not site.layers_behind:
            return {"sent_bytes": layer.features_bytes + layer.beside_bytes, "carried_bytes": 0}
        features_bytes = self._features_bytes(layer)
        late = late_shapes_of(self.method, site).values()
        late_bytes = sum(self.num_samples * prod(shape) * _FLOAT_BYTES for shape in late)
        return {
            "sent_bytes": features_bytes + layer.beside_bytes + self.beside_bytes + late_bytes,
            "carried_bytes": features_bytes if self.method.carries_input else 0,
        }

    def _features_bytes(self, layer: Piece) -> int:
        if self.features_type is None:
            return layer.features_bytes
        return sum(num_bytes(layer.features_shape, self.features_type).values())

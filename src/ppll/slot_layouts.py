"""How large the slots of a run's channels must be: known before anything is sent."""

from __future__ import annotations

from math import prod
from typing import Final

import torch

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.lean import num_bytes
from ppll.channels.base import SlotLayout
from ppll.ends import PARAMETERS
from ppll.job import Job
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS
from ppll.methods.base import PREVIOUS, late_shapes_of

__all__ = ["Layouts"]

_FLOAT_BYTES: Final = torch.float32.itemsize


class Layouts:
    """How large the fields of messages are."""

    def __init__(self, job: Job, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._facts = job.facts
        self._mixes = job.recipe.data.mixes
        self._recipe = job.recipe

    def _num(self, block_index: int) -> int:
        """Most samples of a message that goes to a block from the one before, whole or a shard."""
        largest = self._recipe.largest_messages[max(0, block_index - 1) : block_index + 1]
        return max(min(largest), self._recipe.eval_batch_size)

    def features(self, block_index: int) -> SlotLayout:
        """Of what enters a block."""
        method, num = self._blueprint.method, self._num(block_index)
        sizes = self._feature_sizes(block_index, num) | self._beside_sizes(block_index, num)
        # A field of the loader's is a copy of the input in the same type or a smaller one.
        sizes |= {name: num * self._input_bytes() for name in method.fields}
        if method.carries_input and block_index:
            before = self._feature_sizes(block_index - 1, num)
            sizes |= {name.replace(FEATURES, PREVIOUS): size for name, size in before.items()}
        return SlotLayout({**sizes, **self._target_sizes(num)})

    def _feature_sizes(self, block_index: int, num: int) -> dict[str, int]:
        """Of the fields that stand for a block's input."""
        if block_index == 0:
            return {FEATURES: num * self._input_bytes()}
        shape = (num, *self._blueprint.input_shape(block_index))
        return num_bytes(shape, self._blueprint.recipe.split.features_dtype)

    def _beside_sizes(self, block_index: int, num: int) -> dict[str, int]:
        """Of what a block reads beside the main tensor."""
        first = self._blueprint.network.layers[self._blueprint.ranges[block_index].start]
        if first.reads is None:
            return {}
        read = zip(first.reads.names, first.reads.shapes, first.reads.dtypes, strict=True)
        return {name: num * prod(shape) * dtype.itemsize for name, shape, dtype in read}

    def _target_sizes(self, num: int) -> dict[str, int]:
        """Of what says what is to be predicted."""
        if self._facts.predicts_values:
            return {TARGETS: num * self._facts.num_classes * _FLOAT_BYTES}
        types = {TARGETS: torch.int64}
        if self._mixes:
            types |= {OTHER_TARGETS: torch.int64, MIX: torch.float32}
        each = prod(self._facts.input_shape) if self._facts.predicts_tokens else 1
        return {name: num * each * dtype.itemsize for name, dtype in types.items()}

    def _input_bytes(self) -> int:
        """Of one sample."""
        return prod(self._facts.input_shape) * self._blueprint.input_dtype.itemsize

    def late(self, block_index: int) -> SlotLayout:
        """Of what enters a block late."""
        site = self._blueprint.sites[block_index - 1]
        num, shapes = self._num(block_index), late_shapes_of(self._blueprint.method, site)
        return SlotLayout({n: num * prod(shape) * _FLOAT_BYTES for n, shape in shapes.items()})

    def slow(self, block_index: int) -> SlotLayout:
        """Of what a block reads of a later one."""
        layer = self._blueprint.layer_read_by(block_index)
        num = sum(p.numel() for p in layer.module.parameters())
        return SlotLayout({PARAMETERS: num * _FLOAT_BYTES})

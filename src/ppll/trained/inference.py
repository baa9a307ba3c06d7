"""A trained network with its exits, for use in Python."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppll.blocks.blueprint import Blueprint
from ppll.blocks.lean import FeaturesType, as_received
from ppll.blocks.modules import BlockModules
from ppll.checkpoints.recovery import Recovered, find
from ppll.checkpoints.resume import as_saved
from ppll.checkpoints.same_network import other_layers
from ppll.config import Recipe
from ppll.data.augmentation import Normalisation
from ppll.data.loader import IMAGE
from ppll.data_facts import DataFacts
from ppll.errors import ModelError
from ppll.job import draw_blueprint, given_network
from ppll.message import canonical
from ppll.methods import Method
from ppll.methods.base import PREVIOUS
from ppll.models import OWN_MODEL
from ppll.models.identity import describe_layers
from ppll.models.splitting import Model
from ppll.numerics import autocast_dtype
from ppll.plain_attention import plain_attention
from ppll.run_folder import RunFolder

__all__ = ["BlockCompute", "TrainedNetwork", "blueprint_of", "load", "network_of"]
__all__ += ["open_checkpoint"]


@dataclass(frozen=True)
class BlockCompute:
    """Multiply-adds of a block's matrix products and convolutions on one sample.

    Attributes:
        layers: Of its layers, and of the context that is added to its input.
        exit: Of what its exit computes behind them; 0 where it makes no prediction.
    """

    layers: int
    exit: int


class TrainedNetwork(nn.Module):
    """Blocks one after the other, each with its exit, in evaluation mode.

    It computes as evaluation in training does, in the same precision.

    Args:
        blocks: What each block computes with.
        method: Reads the exits.
        facts: How inputs are normalised.
        step: Training batches that the network has learned from.
        autocast: Type of the matrix products; none for float32.
        features_type: In what features cross the cuts; as they are computed without.
    """

    def __init__(
        self,
        blocks: Sequence[BlockModules],
        method: Method,
        facts: DataFacts,
        step: int,
        *,
        autocast: torch.dtype | None = None,
        features_type: FeaturesType | None = None,
    ) -> None:
        super().__init__()
        self.facts = facts
        self.step = step
        self.blocks = nn.ModuleList(
            nn.Sequential(*(layer.module for layer in block.layers)) for block in blocks
        )
        self.auxiliaries = nn.ModuleList(m for block in blocks for m in block.auxiliaries())
        self.contexts = nn.ModuleList(m for block in blocks for m in block.contexts())
        self._modules_of = tuple(blocks)
        self._method = method
        self._autocast_dtype = autocast
        self._features_type = features_type
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, classes) of the network's final output, in float32.

        Args:
            inputs: uint8 images (N, C, H, W) from 0 to 255, which are normalised as in training; or
                floating point (N, ...), which the layers get as it is: what the network was trained
                on, or images that are normalised already, as ``(images / 255 - facts.mean) /
                facts.std`` by channel. Images of any other scale give wrong predictions silently.
                Or, where it was trained on them, tokens (N, T) in any type of whole number.
        """
        with self._as_trained(inputs):
            *_, features = self._outputs(inputs)
            logits = self._method.exit(None, features)
        assert logits is not None  # The last block always predicts.
        return logits.float()

    def exits(self, inputs: Tensor) -> list[Tensor | None]:
        """Logits (N, classes) of every block's exit in float32, the final output last.

        None stands for a block whose method makes no prediction.

        Args:
            inputs: As for ``forward``.
        """
        with self._as_trained(inputs):
            pairs = zip(self._modules_of, self._outputs(inputs), strict=True)
            found = [self._method.exit(block.auxiliary, features) for block, features in pairs]
        return [None if logits is None else logits.float() for logits in found]

    def features(self, inputs: Tensor) -> list[Tensor]:
        """What every block makes of the inputs (N, ...) in float32, the final output last.

        They are the features that cross the cuts, as the next block gets them, so in fewer bits
        where ``split.features_dtype`` asks for it; where several tensors cross, the main one. No
        cut follows the last block: its entry is the logits of ``forward``. As there, gradients
        flow through all blocks unless ``torch.no_grad()`` is around the call.

        Args:
            inputs: As for ``forward``.
        """
        with self._as_trained(inputs):
            *crossing, last = self._outputs(inputs)
            logits = self._method.exit(None, last)
        assert logits is not None  # The last block always predicts.
        received = [as_received(features, self._features_type) for features in crossing]
        return [features.float() for features in (*received, logits)]

    def multiply_adds(self, inputs: Tensor) -> list[BlockCompute]:
        """What every block computes on a sample, as torch's flop counter has it.

        Args:
            inputs: One sample, as for ``forward``; its values do not matter.
        """
        totals = [0]
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, plain_attention(), self._as_trained(inputs):
            for block, features in zip(self._modules_of, self._outputs(inputs), strict=True):
                totals.append(counter.get_total_flops())
                self._method.exit(block.auxiliary, features)
                totals.append(counter.get_total_flops())
        parts = [(after - before) // 2 for before, after in pairwise(totals)]
        return [BlockCompute(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]

    @contextmanager
    def _as_trained(self, inputs: Tensor) -> Iterator[None]:
        """The precision and the kernels of a block in training, so that the bits are its own."""
        _check_tensor(inputs)
        dtype, needs_plain = self._autocast_dtype, self._method.needs_input_gradient
        with (
            nullcontext() if dtype is None else torch.autocast(inputs.device.type, dtype),
            sdpa_kernel(SDPBackend.MATH) if needs_plain else nullcontext(),
        ):
            yield

    def _outputs(self, inputs: Tensor) -> Iterator[Tensor]:
        """Every block's features."""
        features = self._normalised(inputs)
        fields = {IMAGE: canonical(inputs)}
        for index, block in enumerate(self._modules_of):
            before = canonical(as_received(features, self._features_type) if index else features)
            features, beside = block(before, fields)
            fields |= {PREVIOUS: before, **{n: canonical(tensor) for n, tensor in beside.items()}}
            yield features

    def _normalised(self, inputs: Tensor) -> Tensor:
        if self.facts.holds_tokens:
            return _as_tokens(inputs)
        if inputs.dtype != torch.uint8:
            self._refuse_missing_image()
            return inputs
        if self.facts.mean is None or self.facts.std is None:
            raise ModelError(
                "the network was trained on floating point, found uint8: convert the inputs as "
                "the training data was."
            )
        return Normalisation(self.facts.mean, self.facts.std, inputs.device)(inputs)

    def _refuse_missing_image(self) -> None:
        if len(self.contexts) and IMAGE in self._method.fields and self.facts.mean is not None:
            raise ModelError(
                "blocks of this network read the image as it was before normalisation: give uint8 "
                "images, which are normalised here."
            )


def _check_tensor(inputs: object) -> None:
    if not isinstance(inputs, Tensor):
        raise ModelError(
            f"a trained network reads a tensor of torch, found {type(inputs).__name__}: give "
            f"torch.as_tensor(inputs), with a dimension for samples."
        )


def _as_tokens(inputs: Tensor) -> Tensor:
    if inputs.is_floating_point():
        raise ModelError(
            f"the network was trained on tokens, found {inputs.dtype}: give rows (N, T) of whole "
            f"numbers."
        )
    return inputs.long()


def load(
    run: str | Path,
    *,
    model: Model | None = None,
    best: bool = False,
    step: int | None = None,
) -> TrainedNetwork:
    """The network of a run's newest checkpoint, with its exits, on the CPU.

    It takes uint8 images from 0 to 255 and normalises them; floating point it takes as it is, see
    ``TrainedNetwork.forward``.

    Args:
        run: A run folder.
        model: The network, where it was given from Python; it is not changed.
        best: Take the checkpoint with the best validation accuracy instead of the newest.
        step: Take the checkpoint after so many training batches.

    Raises:
        UsageError: Both ``best`` and ``step`` are given.
        RunFolderError: It is no run or has no such checkpoint.
        ModelError: ``model`` is missing, is not wanted, or is another network.
        CheckpointError: All its checkpoints are damaged, or the one that is asked for is.
    """
    folder, found, recipe = open_checkpoint(run, model, best=best, step=step)
    return network_of(found, recipe, found.facts(folder), model)


def open_checkpoint(
    run: str | Path, model: Model | None, *, best: bool, step: int | None
) -> tuple[RunFolder, Recovered, Recipe]:
    """A run, its newest checkpoint or the one asked for, and the recipe that this is read by.

    Raises:
        UsageError: Both ``best`` and ``step`` are given.
        RunFolderError: It is no run, or has no such checkpoint.
        ModelError: ``model`` is missing or is not wanted.
        CheckpointError: All its checkpoints are damaged, or the one that is asked for is.
    """
    folder = RunFolder.open(Path(run))
    found = find(folder, best=best, step=step)
    recipe = as_saved(folder.read_recipe(), found.reader.manifest.recipe)
    _check_given(run, recipe, model)
    return folder, found, recipe


def network_of(
    found: Recovered, recipe: Recipe, facts: DataFacts, model: Model | None
) -> TrainedNetwork:
    """The network of a checkpoint.

    Args:
        found: The checkpoint.
        recipe: What it is read by.
        facts: How inputs are normalised.
        model: The network, where it was given from Python; it is not changed.

    Raises:
        ModelError: ``model`` is another network.
    """
    blueprint = blueprint_of(found, recipe, facts, model)
    blocks = [blueprint.build_modules(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    saved = found.reader.averaged_weights()
    for block in blocks:
        block.load(saved)
    return TrainedNetwork(
        blocks,
        blueprint.method,
        facts,
        found.step,
        autocast=autocast_dtype(recipe.train),
        features_type=recipe.split.features_dtype,
    )


def _check_given(run: str | Path, recipe: Recipe, model: Model | None) -> None:
    """Refuse a run without the model that it needs, or with one that it does not."""
    if (recipe.model.name == OWN_MODEL) != (model is not None):
        raise ModelError(
            f"the network of {run} was given from Python, so it is not known here: give the same "
            f"model=... to ppll.load, ppll.evaluate or ppll.evaluate_exits."
            if model is None
            else f"the network of {run} is known, {recipe.model.name!r}: leave model out."
        )


def blueprint_of(
    found: Recovered, recipe: Recipe, facts: DataFacts, model: Model | None
) -> Blueprint:
    """The network of a checkpoint cut as it was trained; a given model is not changed.

    Raises:
        ModelError: The model is another one, or the code is that the recipe names.
    """
    blueprint = _drawn(recipe, facts, model)
    other = other_layers(found.reader.manifest.network, describe_layers(blueprint.network))
    if other is None:
        return blueprint
    what = f"the network that {recipe.model.name!r} makes now" if model is None else "this model"
    raise ModelError(
        f"{what} is not the one that was trained: it has {other.now!r}, but was trained with "
        f"{other.before!r}. Give it as it was; ppll export reads the values alone."
    )


def _drawn(recipe: Recipe, facts: DataFacts, model: Model | None) -> Blueprint:
    if model is None:
        return draw_blueprint(recipe, facts, None)
    try:
        return draw_blueprint(recipe, facts, given_network(copy.deepcopy(model), recipe, facts))
    except ModelError as error:
        raise ModelError(f"this model is not the one that was trained. {error}") from None

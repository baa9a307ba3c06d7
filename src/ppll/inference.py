"""A trained network with its exits, for use in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ppll.block_modules import BlockModules
from ppll.data.augment import normalise
from ppll.data.loader import IMAGE
from ppll.data_facts import DataFacts
from ppll.errors import ModelError, RunFolderError
from ppll.job import draw_blueprint
from ppll.methods import Method
from ppll.methods.base import PREVIOUS
from ppll.models import OWN_MODEL
from ppll.models.network import Network
from ppll.recovery import newest_whole
from ppll.run_folder import RunFolder

__all__ = ["TrainedNetwork", "load"]


class TrainedNetwork(nn.Module):
    """Blocks one after the other, each with its exit, in evaluation mode.

    Args:
        blocks: What each block computes with.
        method: Reads the exits.
        facts: How inputs are normalised.
        step: Training batches that the network has learned from.
    """

    def __init__(
        self, blocks: Sequence[BlockModules], method: Method, facts: DataFacts, step: int
    ) -> None:
        super().__init__()
        self.facts = facts
        self.step = step
        self.blocks = nn.ModuleList(
            nn.Sequential(*(layer.module for layer in block.layers)) for block in blocks
        )
        self.auxiliaries = nn.ModuleList(block.auxiliary or nn.Identity() for block in blocks)
        self.contexts = nn.ModuleList(block.context or nn.Identity() for block in blocks)
        self._modules_of = tuple(blocks)
        self._method = method
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, classes) of the network's final output.

        Args:
            inputs: uint8 images (N, C, H, W), which are normalised as in training; or what the
                network was trained on, in floating point (N, ...).
        """
        *_, features = self._outputs(inputs)
        return features

    def exits(self, inputs: Tensor) -> list[Tensor | None]:
        """Logits (N, classes) of every block's exit, the final output last.

        None stands for a block whose method makes no prediction.

        Args:
            inputs: As for ``forward``.
        """
        pairs = zip(self._modules_of, self._outputs(inputs), strict=True)
        return [self._method.exit(block.auxiliary, features) for block, features in pairs]

    def _outputs(self, inputs: Tensor) -> Iterator[Tensor]:
        """Every block's features."""
        features = self._normalised(inputs)
        fields = {IMAGE: inputs}
        for block in self._modules_of:
            before, features = features, block(features, fields)
            fields[PREVIOUS] = before
            yield features

    def _normalised(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.uint8:
            self._refuse_missing_image()
            return inputs
        if self.facts.mean is None or self.facts.std is None:
            raise ModelError(
                "the network was trained on floating point, found uint8: convert the inputs as "
                "the training data was."
            )
        return normalise(inputs, self.facts.mean, self.facts.std)

    def _refuse_missing_image(self) -> None:
        has_context = any(block.context is not None for block in self._modules_of)
        if has_context and IMAGE in self._method.fields and self.facts.mean is not None:
            raise ModelError(
                "blocks of this network read the image as it was before normalisation: give uint8 "
                "images, which are normalised here."
            )


def load(
    run: str | Path, *, model: nn.Sequential | Sequence[nn.Module] | None = None
) -> TrainedNetwork:
    """The network of a run's newest checkpoint, with its exits, on the CPU.

    Args:
        run: A run folder.
        model: The network's modules, where they were given from Python; they are not changed.

    Raises:
        RunFolderError: It is no run or has no checkpoint.
        ModelError: ``model`` is missing, is not wanted, or is another network.
        CheckpointError: All its checkpoints are damaged.
    """
    folder = RunFolder.open(Path(run))
    recipe, facts = folder.read_recipe(), folder.read_facts()
    if (recipe.model.name == OWN_MODEL) != (model is not None):
        raise ModelError(
            f"the network of {run} was given from Python: give load the same model=..."
            if model is None
            else f"the network of {run} is known, {recipe.model.name!r}: leave model out."
        )
    network = None if model is None else Network.from_modules(model)
    blueprint = draw_blueprint(recipe, facts, network)
    found = newest_whole(folder.checkpoints)
    if found is None:
        raise RunFolderError(f"{run} has no whole checkpoint.")
    blocks = [blueprint.build_modules(i, torch.device("cpu")) for i in range(blueprint.num_blocks)]
    saved = found.reader.all_weights()
    for block in blocks:
        block.load(saved)
    return TrainedNetwork(blocks, blueprint.method, facts, found.step)

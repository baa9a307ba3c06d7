"""All that a rank needs to know of a run, small enough to hand to a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppll.blocks.blueprint import Blueprint
from ppll.claim import Claim
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import RecipeError
from ppll.faults import Fault
from ppll.mesh import Mesh
from ppll.metrics import Tally
from ppll.models import OWN_MODEL, models
from ppll.models.empty import without_values
from ppll.models.libraries import build_of_library
from ppll.models.network import Network
from ppll.models.own_model import build_own_model
from ppll.models.splitting import Model, sample_of, split
from ppll.placement import mesh_of
from ppll.run_folder import RunFolder

__all__ = ["Job", "RankResult", "draw_blueprint", "found_network", "given_network"]
__all__ += ["refuse_given"]


@dataclass(frozen=True)
class Job:
    """One run, as every rank is told of it.

    Attributes:
        recipe: The run's recipe.
        folder: Where the run is kept.
        facts: What every rank must know of the data.
        shapes: One sample's shape at the output of every layer.
        num_stages: Stages of the network, each with its replicas.
        start_step: The committed checkpoint to start from; values of all blocks come from there.
        generation: How often the run has been started again by itself.
        claim: The right of this start to write checkpoints.
        fresh: Modules that the checkpoint does not hold and that get first values, by the prefix
            of their parameters' names.
        keeps_optimizer: Whether the checkpoint's optimizer state is used.
        skeleton: A user's own network, or one of a library, on the meta device; none for one of
            our shelf.
        layers: What the network's layers are, which checkpoints are to say.
        user_data: Whether the data was given from Python and lies in the run folder.
        evaluates_only: Evaluate the checkpoint and stop.
        sockets: Private folder in which neighbours meet.
        leftovers: Folders that a rank removes when its launcher is gone and cannot.
        secret: What they show each other.
        fault: The failure that a test wants.
    """

    recipe: Recipe
    folder: RunFolder
    facts: DataFacts
    shapes: tuple[tuple[int, ...], ...]
    num_stages: int
    start_step: int = 0
    generation: int = 0
    claim: Claim | None = None
    fresh: frozenset[str] = frozenset()
    keeps_optimizer: bool = True
    skeleton: Network | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    user_data: bool = False
    evaluates_only: bool = False
    sockets: Path | None = None
    leftovers: tuple[Path, ...] = ()
    secret: bytes = field(default=b"", repr=False)
    fault: Fault | None = None

    @property
    def mesh(self) -> Mesh:
        """All processes."""
        return mesh_of(self.recipe.train.replicas, self.num_stages)

    def blueprint(self) -> Blueprint:
        """The run's network cut into blocks, without values."""
        return draw_blueprint(self.recipe, self.facts, self.skeleton, self.shapes)


def refuse_given(recipe: Recipe) -> None:
    """Refuse a recipe whose network was given from Python, where it is not given now.

    Raises:
        RecipeError: It is such a one.
    """
    if recipe.model.name == OWN_MODEL:
        raise RecipeError(
            f"model.name = {recipe.model.name!r}: the network of this recipe was given from "
            f"Python, so only a program has it: ppll.Trainer(recipe, model=...). Or name what "
            f'makes it, as model.name = "module:function".'
        )


def named_network(recipe: Recipe, facts: DataFacts) -> Network:
    """The network that the recipe names: without values, or a foreign one cut into layers.

    Raises:
        UsageError: It is unknown, or cannot be cut.
    """
    name, options, seed = recipe.model.name, recipe.model.options, recipe.train.seed
    shape, num_classes = facts.input_shape, facts.num_classes
    refuse_given(recipe)
    if recipe.model.is_own:
        return given_network(build_own_model(name, options, seed), recipe, facts)
    if recipe.model.is_foreign:
        model = build_of_library(name, options, shape, facts.num_tokens or num_classes, seed)
        return given_network(model, recipe, facts)
    with without_values():
        return models.build(name, options, shape, num_classes)


def given_network(model: Model, recipe: Recipe, facts: DataFacts) -> Network:
    """A model as a row of layers that read the data.

    Raises:
        ModelError: It cannot be cut, or does not read such data.
    """
    sample = sample_of(facts.input_shape, facts.num_tokens)
    return split(model, sample, untie=recipe.split.untie)


def found_network(model: Model | None, recipe: Recipe, facts: DataFacts) -> Network | None:
    """The row of a given model or a foreign one; none where our shelf has the network.

    Raises:
        UsageError: It is unknown, or cannot be cut.
    """
    if model is not None:
        return given_network(model, recipe, facts)
    return named_network(recipe, facts) if recipe.model.is_foreign else None


def draw_blueprint(
    recipe: Recipe,
    facts: DataFacts,
    network: Network | None,
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> Blueprint:
    """Cut the given network, or the one that the recipe names, into blocks.

    Args:
        recipe: The run's recipe.
        facts: What it is trained on.
        network: A user's own.
        shapes: Of every layer's output, where they are known.

    Raises:
        UsageError: The network is unknown, or cannot be cut as the recipe says.
    """
    if network is None:
        network = named_network(recipe, facts)
        if recipe.model.is_foreign:
            shapes = None  # They do not say whether, and how, tensors are put together.
    return Blueprint.draw(recipe, network, facts, shapes)


@dataclass(frozen=True)
class RankResult:
    """What one rank has to say at the end.

    Attributes:
        step: Training batches it has learned from.
        samples: Training samples among them.
        started_s: When its first message came, by the machine's monotonic clock.
        seconds: From then to the stop.
        evaluation_s: Seconds of them in which it evaluated.
        busy_fraction: Share of them in which it did not wait for another rank.
        peak_memory_bytes: Most memory its process had, on a GPU beside what it had there before.
        training_peak_bytes: The same before it first saved anything; 0 where it saved nothing.
        exits: What was counted by split and block index, at the last evaluation of each.
        digests: One line a tensor; see ``checkpoint.tensor_digest``.
    """

    step: int
    samples: int
    started_s: float
    seconds: float
    evaluation_s: float
    busy_fraction: float
    peak_memory_bytes: int
    training_peak_bytes: int
    exits: dict[str, dict[int, Tally]]
    digests: tuple[str, ...]

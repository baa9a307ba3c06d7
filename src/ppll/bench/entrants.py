"""PPLL on one or several stages, and every rival, as they take part in a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch

from ppll.baselines import RecipeWork, accuracy_of, run_baseline, system_named
from ppll.baselines.systems import Layout
from ppll.batch_ends import read_ends
from ppll.bench.entrant import LOCAL, Entrant, Timing
from ppll.blocks.blueprint import Blueprint
from ppll.config import Recipe
from ppll.data import load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.devices import check_devices, device_of
from ppll.errors import Interrupted, RecipeError, UsageError, WorkerError
from ppll.job import draw_blueprint
from ppll.planning.costs import Costs
from ppll.planning.measuring import measure
from ppll.planning.plan import balanced_cuts
from ppll.planning.planned import BlockTable
from ppll.planning.rivals import end_to_end_cuts
from ppll.result import Result
from ppll.run_folder import RunFolder
from ppll.sections import CheckpointConfig, TrackConfig
from ppll.simulation.simulate import Link
from ppll.trainer import Trainer

__all__ = ["Race"]

_LINK: Final = Link(bandwidth_bytes_s=5e9, latency_s=50e-6)
"""Between two processors of one machine; balanced cuts ask for it."""
_TIMEOUT_S: Final = 7 * 24 * 3600.0


class Local(Entrant):
    """PPLL on some stages."""

    def __init__(self, race: Race, system: str, stages: int, accumulate: int) -> None:
        self.system, self.stages, self.microbatches = system, stages, accumulate
        self._race = race
        self.devices = _devices(race.recipe_on(stages))
        self.bytes_sent = _bytes_sent(race, stages)

    @property
    def _recipe(self) -> Recipe:
        settings = [f"train.accumulate={self.microbatches}"]
        return self._race.recipe_on(self.stages).with_settings(settings)

    def check(self) -> None:
        """See that there is nothing in the way; nothing is started."""
        with tempfile.TemporaryDirectory(prefix="ppll-compare-") as folder:
            Trainer(self._recipe, out=Path(folder) / "run")

    def timed(self) -> Timing:
        """Train as many batches as are timed, and those of the warm-up, filling and draining."""
        first = self._race.num_untimed
        last = first + self._race.num_batches
        # As many for one stage, so that it ends with the same weights.
        settings = [f"train.max_steps={last + self._race.num_filling}", "track.batch_ends=true"]
        recipe = self._recipe.with_settings(settings)
        with tempfile.TemporaryDirectory(prefix="ppll-compare-") as folder:
            # With a restart allowed, one stage has a process of its own, as all others have.
            restarts = int(self.stages == 1)
            out = Path(folder) / "run"
            result = _fitted(Trainer(recipe, out=out, max_restarts=restarts))
            ends_s = read_ends(RunFolder(out).batch_ends(self.stages - 1))
        if first not in ends_s:
            raise RecipeError("a run broke and was started again, so it has no rate: measure anew.")
        num_samples = self._race.num_batches * recipe.data.batch_size
        return Timing(
            num_samples / (ends_s[last] - ends_s[first]),
            result.training_peak_bytes,  # rivals save nothing
            # The host of a GPU does not wait for it, so its waits say something else.
            busy_fraction=result.busy_fraction if set(self.devices) == {"cpu"} else None,
            weights_sha256=result.weights_sha256,
        )

    def accuracy(self, epochs: int) -> float:
        """Train for so many epochs; share of test samples that the final output gets right."""
        recipe = self._recipe.with_settings([f"train.epochs={epochs}"])
        with tempfile.TemporaryDirectory(prefix="ppll-compare-") as folder:
            accuracy = _fitted(Trainer(recipe, out=Path(folder) / "run")).test_accuracy
        assert accuracy is not None
        return accuracy


def _fitted(trainer: Trainer) -> Result:
    """What training comes to, of whose folder nothing is left to go on with."""
    try:
        return trainer.fit()
    except WorkerError as error:
        error.__notes__ = []
        raise
    except Interrupted:
        raise Interrupted("interrupted; a comparison keeps nothing.") from None


class EndToEnd(Entrant):
    """A rival."""

    def __init__(self, race: Race, system: str, ranks: int, microbatches: int) -> None:
        self.system, self.stages, self.microbatches = system, ranks, microbatches
        self._race = race
        self._recipe = race.recipe_on(ranks)
        self.devices = _devices(self._recipe)

    def _work(self, recipe: Recipe) -> RecipeWork:
        chunks = system_named(self.system).chunks_per_rank * self.stages
        is_cut = system_named(self.system).kind == "pipeline"
        return RecipeWork(recipe, self._race.end_to_end_cuts(chunks) if is_cut else None)

    def check(self) -> None:
        """See that there is nothing in the way; nothing is started."""
        num_untimed = self._race.num_untimed
        num_batches = num_untimed + self._race.num_batches
        system = system_named(self.system)
        layout = Layout(system, self.stages, self.microbatches, num_batches, num_untimed)
        self._work(self._recipe).prepared(layout)

    def timed(self) -> Timing:
        """Train as many batches as are timed, and as many before them as PPLL."""
        race = self._race
        result = run_baseline(
            self.system,
            self._work(self._recipe),
            num_ranks=self.stages,
            num_microbatches=self.microbatches,
            num_batches=race.num_untimed + race.num_batches,
            warm_up=race.num_untimed,
            keeps_weights=False,
        )
        mean_s = sum(result.seconds_per_batch) / len(result.seconds_per_batch)
        return Timing(
            race.recipe.data.batch_size / mean_s,
            result.peak_memory_bytes,
            result.base_memory_bytes,
            result.bytes_sent,
        )

    def accuracy(self, epochs: int) -> float:
        """Train for so many epochs; share of test samples that the final output gets right."""
        recipe = self._recipe.with_settings([f"train.epochs={epochs}"])
        result = run_baseline(
            self.system,
            self._work(recipe),
            num_ranks=self.stages,
            num_microbatches=self.microbatches,
            num_batches=epochs * self._race.steps_per_epoch,
            timeout_s=_TIMEOUT_S,
        )
        return accuracy_of(recipe, result.weights)


@dataclass(frozen=True)
class Race:
    """What all entrants have in common.

    Attributes:
        recipe: With PPLL's cuts written out, and no evaluation, checkpoint or short batch on the
            way.
        blueprint: Its network cut into blocks.
        costs: What cuts are balanced by.
        steps_per_epoch: Training batches of an epoch.
        num_stages: Processes of whoever can have several.
        num_batches: Batches that are timed.
        warm_up: Batches before them.
    """

    recipe: Recipe
    blueprint: Blueprint
    costs: Costs
    steps_per_epoch: int
    num_stages: int
    num_batches: int
    warm_up: int

    @classmethod
    def prepared(
        cls,
        recipe: Recipe,
        num_stages: int,
        num_batches: int,
        warm_up: int,
        costs: Costs | None = None,
    ) -> Self:
        """Write out the cuts and see that the recipe can be trained so.

        Raises:
            UsageError: It cannot.
        """
        if recipe.most_replicas > 1:
            raise RecipeError("train.replicas: a comparison is of one pipeline; set it to 1.")
        blocks = max(recipe.split.blocks, num_stages)
        settings = ["train.evaluate_every=0", "data.drop_last=true", "train.accumulate=1"]
        settings += [f"split.blocks={blocks}", f"train.epochs={10**6}"]
        settings += [f"runtime.stages={num_stages}"]
        train = recipe.train.model_copy(update={"max_steps": None})
        # Rivals save nothing, and write nothing down.
        alike = {"train": train, "checkpoint": CheckpointConfig(), "track": TrackConfig()}
        recipe = recipe.model_copy(update=alike).with_settings(settings)
        check_devices(recipe)
        costs = costs or _measured(recipe)
        costs.check_recipe(recipe)
        if recipe.split.cuts == "balanced":
            # Between GPUs nothing was measured, so cuts are balanced as rivals' are: without.
            link = _LINK if "cpu" in _devices(recipe) else Link()
            cuts = list(balanced_cuts(recipe, costs, link))
            recipe = recipe.with_settings([f"split.cuts={cuts}"])
        facts = facts_of(prepare(load_dataset(recipe.data), recipe.data))
        blueprint = draw_blueprint(recipe, facts, None)
        blueprint.stage_blocks(num_stages)
        return cls(
            recipe, blueprint, costs, facts.steps_per_epoch, num_stages, num_batches, warm_up
        )

    @property
    def num_filling(self) -> int:
        """Batches that PPLL's channels hold, while they fill or run empty."""
        return self.recipe.runtime.capacity * self.num_stages + 1

    @property
    def num_untimed(self) -> int:
        """Batches before those that are timed, the same ones for all who take part."""
        return self.warm_up + self.num_filling

    def entrants(
        self,
        systems: Sequence[str],
        microbatches: Sequence[int],
        accumulate: Sequence[int],
        noted: Callable[[str], None],
    ) -> Iterator[Entrant]:
        """Every system in every number of pieces that it can take a batch in."""
        for system in dict.fromkeys(systems):
            if system in LOCAL:
                stages = self.num_stages if system == "ppll" else 1
                Local(self, system, stages, 1).check()  # without it there is nothing to compare
                pieces = dict.fromkeys((1, *accumulate) if system == "ppll" else (1,))
                yield from _able((Local(self, system, stages, p) for p in pieces), noted)
            else:
                yield from _able(self._rivals(system, microbatches), noted)

    def _rivals(self, system: str, microbatches: Sequence[int]) -> Iterator[Entrant]:
        kind = system_named(system).kind
        ranks = 1 if kind == "single" else self.num_stages
        for count in dict.fromkeys(microbatches) if kind == "pipeline" else (1,):
            yield EndToEnd(self, system, ranks, count)

    def recipe_on(self, num_ranks: int) -> Recipe:
        """The recipe for so many processes: the first of those whose devices it names."""
        recipe = self.recipe.with_settings([f"runtime.stages={num_ranks}"])
        if isinstance(recipe.runtime.devices, str):
            return recipe
        devices = recipe.runtime.devices[:num_ranks]
        runtime = recipe.runtime.model_copy(update={"devices": devices})
        return recipe.model_copy(update={"runtime": runtime})

    def end_to_end_cuts(self, num_chunks: int) -> tuple[int, ...]:
        """Cuts that are balanced for a rival."""
        return end_to_end_cuts(self.costs, num_chunks)


def _measured(recipe: Recipe) -> Costs:
    costs = measure(recipe)
    # What this process has of a GPU's memory, those that take part do not have.
    torch.cuda.empty_cache()
    return costs


def _devices(recipe: Recipe) -> tuple[str, ...]:
    """Of every process."""
    runtime = recipe.runtime
    return tuple(str(device_of(runtime, rank)) for rank in range(runtime.stages))


def _able(entrants: Iterable[Entrant], noted: Callable[[str], None]) -> Iterator[Entrant]:
    """Those that can take part; of the others it is said why not."""
    for entrant in entrants:
        try:
            entrant.check()
        except UsageError as error:
            noted(f"{entrant.name} is left out: {error}")
        else:
            yield entrant


def _bytes_sent(race: Race, num_stages: int) -> tuple[int, ...]:
    """What each stage hands on for a batch: features, and what goes beside them."""
    blueprint, table = race.blueprint, BlockTable(race.recipe, race.costs, Link())
    sent = []
    for blocks in blueprint.stage_blocks(num_stages)[:-1]:
        last = blueprint.ranges[blocks.stop - 1]
        sent.append(table.block(last.start, last.stop).features_bytes)
    return (*sent, 0)

"""What goes beside features: second parts of messages, and a later block's parameters.

The methods here are made up, so that what must come out can be said exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.block import Block
from ppll.blocks.blueprint import build_method
from ppll.blocks.slow import SlowParameters
from ppll.channels.greeting import MAX_CAPACITY
from ppll.checkpoints.saving import Saver, SaveRules
from ppll.config import Recipe
from ppll.data import load_dataset
from ppll.data.loader import IMAGE
from ppll.ends import Waiting
from ppll.errors import ModelError, RecipeError, WorkerError
from ppll.message import Kind
from ppll.methods import Lesson, LocalLoss, Paper, TaskLoss, methods
from ppll.methods.base import PREVIOUS
from ppll.methods.greedy import Greedy
from ppll.own_method import _LONGEST_LAG
from ppll.registry import Entry
from ppll.simulation.line_times import _MOST_AHEAD
from ppll.site import BlockSite
from ppll.stream import EVERYTHING_SAVED
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    interleave,
    make_workers,
    small_recipe,
)
from tests.thinning import slow_but


class Follows(Greedy):
    """Draws a block's prediction towards the one of the block before."""

    paper = Paper("none", 2026, "here")
    late_fields = ("prediction",)

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        loss = super().local_loss(auxiliary, lesson, task_loss)
        before = lesson.late.get("prediction")
        if before is None:
            return loss
        assert loss.logits is not None
        return LocalLoss(loss.value + (loss.logits - before).square().mean(), loss.logits)

    def late_part(self, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
        assert loss.logits is not None
        return {"prediction": loss.logits}

    def late_shapes(self, site: BlockSite) -> dict[str, tuple[int, ...]]:
        return {"prediction": (site.num_classes,)}


class Recorder(nn.Module):
    """A linear head that keeps the sums of all parameters that it was shown."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("seen", torch.zeros(64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        self.seen.zero_()
        self.count.zero_()

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features) + 1e-3 * self.seen.sum()
        return logits


class Watches(Greedy):
    """Learns from the next block's first layer as it was ``lag`` messages ago."""

    paper = Paper("none", 2026, "here")
    slow_from = "next"

    def __init__(self, *, lag: int = 2) -> None:
        super().__init__()
        self.lag = lag

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        return Recorder(super().build_auxiliary(site))

    def take_slow(self, auxiliary: nn.Module, parameters: Tensor) -> None:
        assert isinstance(auxiliary, Recorder)
        auxiliary.seen[auxiliary.count] = parameters.sum()
        auxiliary.count += 1


class SeesImage(nn.Module):
    """A number a sample from the image and from what the block before has read."""

    def __init__(self, num_dimensions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))
        self._ones = (1,) * (num_dimensions - 1)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.1)

    def forward(self, fields: Mapping[str, Tensor]) -> Tensor:
        image = fields[IMAGE].float().flatten(1).mean(1) / 255
        previous = fields[PREVIOUS].flatten(1).mean(1)
        seen = self.weight[0] * image + self.weight[1] * previous
        return seen.view(-1, *self._ones, 1)


class Sees(Greedy):
    """Every block but the first reads the image, and the input of the block before."""

    paper = Paper("none", 2026, "here")
    fields = (IMAGE,)
    carries_input = True

    def build_context(self, site: BlockSite) -> nn.Module:
        return SeesImage(len(site.block_input_shape))


class Calm(Greedy):
    """Keeps the loss flat around the block's input: asks for a gradient, twice differentiated."""

    paper = Paper("none", 2026, "here")
    needs_input_gradient = True

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        loss = super().local_loss(auxiliary, lesson, task_loss)
        (gradient,) = torch.autograd.grad(loss.value, lesson.inputs, create_graph=True)
        return LocalLoss(loss.value + gradient.square().sum(), loss.logits)


class Silent(Greedy):
    """Blocks but the last predict nothing: they keep their features small."""

    paper = Paper("none", 2026, "here")

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor | None:
        return features if auxiliary is None else None

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        if auxiliary is None:
            return super().local_loss(auxiliary, lesson, task_loss)
        # The head takes part with nothing, so that every parameter has a gradient.
        nothing = 0 * auxiliary(lesson.features).sum()
        return LocalLoss(lesson.features.square().mean() + nothing, None)


def trained(
    method: Greedy,
    num_stages: int,
    capacity: int = 1,
    choose=lambda num_able: num_able - 1,
    network: str = "vit",
) -> list[Block]:
    recipe: Recipe = small_recipe(network, "greedy", epochs=3)
    batches = MadeUpBatches()
    blueprint = dataclasses.replace(blueprint_of(recipe, batches), method=method)
    blocks = built_blocks(blueprint)
    interleave(make_workers(blueprint, blocks, batches, num_stages, capacity), choose)
    return blocks


@functools.cache
def sequential_digest(method: Greedy) -> str:
    return digest(trained(method, 1))


FOLLOWS, WATCHES = Follows(), Watches(lag=2)


@pytest.mark.parametrize("method", [FOLLOWS, WATCHES, Watches(lag=1), Watches(lag=5)])
@pytest.mark.parametrize(
    ("num_stages", "capacity"), slow_but([(4, 1), (4, 8)], [(2, 1), (4, 1), (4, 8)])
)
def test_the_same_bits_on_every_placement(method: Greedy, num_stages: int, capacity: int) -> None:
    assert digest(trained(method, num_stages, capacity)) == sequential_digest(method)


@pytest.mark.parametrize("method", [Sees(), Calm(), Silent()])
def test_context_and_input_gradients_give_the_same_bits_too(method: Greedy) -> None:
    digests = {digest(trained(method, n, network="resnet")) for n in (1, 2, 4)}
    assert len(digests) == 1
    assert digests != {digest(trained(Greedy(), 1, network="resnet"))}


@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
@hypothesis.given(
    method=st.sampled_from([FOLLOWS, WATCHES]),
    num_stages=st.sampled_from([2, 3, 4]),
    capacity=st.sampled_from([1, 2, 8]),
    random=st.randoms(use_true_random=False),
)
def test_no_interleaving_changes_a_bit(method, num_stages, capacity, random) -> None:
    blocks = trained(method, num_stages, capacity, random.randrange)
    assert digest(blocks) == sequential_digest(method)


def test_a_second_part_changes_what_is_learned() -> None:
    assert digest(trained(Follows(), 2)) != digest(trained(Greedy(), 2))


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("lag", [1, 2, 4])
def test_step_t_sees_the_parameters_after_step_t_minus_lag(lag: int, num_stages: int) -> None:
    """Every block notes what its first layer is after each message, beside what it was shown."""
    recipe = small_recipe("vit", "greedy", epochs=3)
    batches = MadeUpBatches()
    blueprint = dataclasses.replace(blueprint_of(recipe, batches), method=Watches(lag=lag))
    blocks = built_blocks(blueprint)
    history = [[block.published_parameters().sum()] for block in blocks]
    for block, sums in zip(blocks, history, strict=True):
        note_after_learning(block, sums)
    workers = make_workers(blueprint, blocks, batches, num_stages, 2, kinds=(Kind.TRAIN, Kind.STOP))
    interleave(workers, lambda num_able: 0)
    for reader, sums in zip(blocks[:-1], history[1:], strict=True):
        shown = reader.modules.auxiliary.seen[:9]
        expected = [sums[max(0, step - lag)] for step in range(1, 10)]
        assert torch.equal(shown, torch.stack(expected))


@pytest.mark.parametrize("name", ["man", "solo"])
def test_who_reads_stays_until_nothing_more_is_sent(name: str) -> None:
    """Also where it saves nothing, as a further replica: its process closes the channel then."""
    batches = MadeUpBatches((6,))  # two messages: what they read is there from the start
    blueprint = blueprint_of(small_recipe(method=name), batches)
    kinds = (Kind.TRAIN, Kind.STOP)
    workers = make_workers(blueprint, built_blocks(blueprint), batches, 2, 4, kinds)
    run, slow_inbox = workers[0].run, workers[0]._ends.slow_inbox

    def run_and_close() -> Iterator[Waiting]:
        yield from run()
        slow_inbox.close()

    workers[0].run = run_and_close
    interleave(workers, lambda num_able: 0)


def note_after_learning(block: Block, sums: list[Tensor]) -> None:
    learn = block.learn

    def learn_and_note(late: Mapping[str, Tensor] | None = None, slow: Tensor | None = None):
        part = learn(late, slow)
        sums.append(block.published_parameters().sum())
        return part

    block.learn = learn_and_note


def test_a_snapshot_waits_for_what_is_on_its_way() -> None:
    slow = SlowParameters(torch.tensor([[1.0], [2.0], [3.0]]))
    assert [slow.take().item() for _ in range(2)] == [1.0, 2.0]
    snapshot = slow.snapshot()
    assert not snapshot.is_complete
    assert not slow.is_whole
    slow.put(torch.tensor([4.0]))
    assert slow.take().item() == 3.0
    assert not snapshot.is_complete
    slow.put(torch.tensor([5.0]))
    slow.put(torch.tensor([6.0]))
    assert slow.is_whole
    assert snapshot.stacked().flatten().tolist() == [3.0, 4.0, 5.0]


SHELVED = {"follows": Follows, "watches": Watches, "sees": Sees, "silent": Silent}


@pytest.fixture
def shelved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The made-up methods as if they stood on the shelf."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    entries = {n: Entry(n, "made up", b) for n, b in SHELVED.items()}
    monkeypatch.setattr(methods, "_entries", {**methods._entries, **entries})


@pytest.mark.usefixtures("shelved")
@pytest.mark.parametrize(
    ("name", "lag"),
    slow_but([("watches", 2)], [("follows", None), ("watches", 2), ("watches", 5)]),
)
def test_a_run_goes_on_with_what_was_on_its_way(name: str, lag: int | None, tmp_path: Path) -> None:
    settings = [f"method.name={name}", *([f"method.lag={lag}"] if lag else [])]
    base = recipe().with_settings(settings)
    whole = ppll.Trainer(base, out=tmp_path / "whole").fit()
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        ppll.Trainer(base, out=tmp_path / "run").fit()
    resumed = ppll.Trainer(base, out=tmp_path / "run", resume=True).fit()
    assert resumed.weights_sha256 == whole.weights_sha256


def test_a_stage_saves_its_blocks_when_all_that_is_on_its_way_has_come(tmp_path: Path) -> None:
    """Two stages: the first is ahead, so its checkpoint waits, and nobody else does."""
    base = small_recipe("vit", "greedy", split_blocks=2)
    blueprint = dataclasses.replace(blueprint_of(base, MadeUpBatches()), method=Watches(lag=2))
    reader, _ = built_blocks(blueprint)
    assert reader.slow is not None
    saver = Saver(SaveRules(tmp_path, 2, {}, keep=2), commits=False, saved_step=0)
    saver.hear(EVERYTHING_SAVED)
    first = reader.slow.take()
    saver.save(1, [reader])
    saver.hear(EVERYTHING_SAVED)
    assert saver.saved_step == 0
    reader.slow.put(first + 1)
    saver.finish()
    assert saver.saved_step == 1
    saver.close()
    saved = safetensors.torch.load_file(
        tmp_path / "step-00000001" / "block-00.optimizer.safetensors"
    )
    assert torch.equal(saved[reader.modules.slow_name], torch.stack([first, first + 1]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.lag=0", "method.lag"),
        ("method.lag=64", "method.lag.* 63"),
        ("method.lag=2", "option of method"),
    ],
)
def test_a_lag_that_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(recipe().with_settings(["method.name=dgl", setting]))


def test_the_longest_lag_is_what_a_channel_takes_without_waiting() -> None:
    """One number in four places: a recipe needs no channel, nor do a method and a prediction."""
    longest = recipe().with_settings(["method.name=man", f"method.lag={MAX_CAPACITY - 1}"])
    assert longest.method.lag == _MOST_AHEAD == _LONGEST_LAG == MAX_CAPACITY - 1
    with pytest.raises(RecipeError, match=r"method\.lag"):
        longest.with_settings([f"method.lag={MAX_CAPACITY}"])


@pytest.mark.usefixtures("shelved")
def test_context_stays_in_the_network(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "model.safetensors"
    base = recipe().with_settings(["method.name=sees"])
    result = ppll.Trainer(base, out=run).fit()
    network = ppll.load(run)
    test = load_dataset(base.data).test
    with torch.no_grad():
        hits = [e.argmax(1) == test.targets for e in network.exits(test.inputs)]
        outputs = network(test.inputs)
    accuracies = [hit.float().mean().item() for hit in hits]
    assert accuracies == pytest.approx(list(result.exit_accuracy))
    assert outputs.shape == (10, 3)
    with pytest.raises(ModelError, match="give uint8 images"):
        network(torch.rand(1, 1, 8, 8))
    ppll.export(run, target)
    names = safetensors.torch.load_file(target)
    assert [n for n in names if n.startswith("context.")] == [
        f"context.{layer}.weight" for layer in ("stage1_1", "stage2_1", "stage3_0")
    ]
    assert not any(n.startswith("auxiliary.") for n in names)


@pytest.mark.usefixtures("shelved")
def test_a_block_that_predicts_nothing_has_no_accuracy(tmp_path: Path) -> None:
    base = recipe().with_settings(["method.name=silent"])
    result = ppll.Trainer(base, out=tmp_path / "run").fit()
    assert result.exit_accuracy[:3] == (None, None, None)
    assert result.exit_accuracy[3] == result.test_accuracy
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["exit_accuracy"][:3] == [None, None, None]
    exits = ppll.load(tmp_path / "run").exits(torch.zeros(2, 1, 8, 8))
    assert [e is None for e in exits] == [True, True, True, False]

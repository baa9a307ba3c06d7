"""One block: isolation, what it refuses, and what its learning depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.block import Block, NonFiniteLoss
from ppll.blocks.blueprint import Blueprint
from ppll.blocks.nonfinite import LossCheck
from ppll.config import Recipe
from ppll.data.loader import IMAGE
from ppll.data_facts import DataFacts
from ppll.errors import ModelError, WorkerError
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.methods import Lesson, LocalLoss, Method, Paper, TaskLoss
from ppll.metrics import Tally
from ppll.models.network import Network
from tests.faults import recipe
from tests.interleaving import built_blocks, digest

WIDTH, NUM_CLASSES = 6, 3


class Own(Method):
    """A method with an auxiliary network of the test's choice."""

    paper = Paper("none", 2026, "here")

    def __init__(self, auxiliary: nn.Module) -> None:
        self.auxiliary = auxiliary

    def build_auxiliary(self, site) -> nn.Module:
        return self.auxiliary


def make_blocks(*layers: nn.Module, auxiliary: nn.Module | None = None, **tree: Any) -> list[Block]:
    """Two blocks: ``layers`` and a linear layer on top."""
    modules = [*(layers or (nn.Linear(WIDTH, WIDTH), nn.Tanh())), nn.Linear(WIDTH, NUM_CLASSES)]
    recipe = Recipe.from_dict(
        {
            "split": {"blocks": 2, "cuts": [len(modules) - 1]},
            "method": {"name": "greedy"},
            "optimizer": {"lr": 0.1, **tree.pop("optimizer", {})},
            "schedule": {"name": "constant"},
            "train": {"epochs": 1, **tree},
        }
    )
    blueprint = Blueprint.draw(
        recipe,
        Network.from_modules(modules),
        DataFacts((WIDTH,), NUM_CLASSES, 10),
    )
    return built_blocks(
        blueprint if auxiliary is None else replace(blueprint, method=Own(auxiliary))
    )


def batch(kind: Kind = Kind.TRAIN, step: int = 1, scale: float = 1.0) -> Message:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, WIDTH, generator=generator) * scale
    targets = torch.tensor([0, 1, 2, 0, 1])
    tensors = {FEATURES: inputs, TARGETS: targets}
    return Message(kind=kind, sequence=step - 1, step=step, tensors=tensors)


def learn(block: Block, message: Message) -> Message:
    sent = block.forward(message)
    block.learn()
    return sent


def values(block: Block) -> list[Tensor]:
    return [p.detach().clone() for _, p in block.modules.named_parameters()]


def gradients(block: Block) -> list[Tensor | None]:
    return [p.grad for _, p in block.modules.named_parameters()]


def test_no_gradient_leaves_a_block() -> None:
    first, second = make_blocks()
    message = batch()
    sent = first.forward(message)
    second.forward(sent)
    second.learn()
    assert sent.features.grad_fn is None
    assert not sent.features.requires_grad
    assert not message.features.requires_grad
    assert gradients(first) == [None] * 4
    assert all(gradient is not None for gradient in gradients(second))


class Tells(Own):
    """Hands on its prediction with all its history."""

    late_fields = ("prediction",)

    def late_part(self, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
        return {"prediction": loss.logits * 2}


def test_no_gradient_leaves_with_the_second_part() -> None:
    first, _ = make_blocks()
    first.method = Tells(nn.Identity())
    first.forward(batch())
    late = first.learn()["prediction"]
    assert late.grad_fn is None
    assert not late.requires_grad


def test_learning_reaches_layers_and_auxiliary_network_only() -> None:
    first, second = make_blocks()
    learn(first, batch())
    assert all(gradient is not None for gradient in gradients(first))
    assert gradients(second) == [None] * 2


def test_features_leave_before_the_block_learns() -> None:
    first, _ = make_blocks()
    sent = first.forward(batch())
    before = sent.features.clone()
    first.learn()
    assert torch.equal(sent.features, before)
    assert torch.equal(sent.targets, batch().targets)


IN_PLACE = r"changes the {} of block {} in place: ReLU\(inplace=True\)\. .*inplace=False"


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_layers_that_change_the_input_are_refused(kind: Kind) -> None:
    first, _ = make_blocks(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))
    with pytest.raises(ModelError, match=IN_PLACE.format("input", 0)):
        first.forward(batch(kind))


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_an_auxiliary_network_that_changes_the_output_is_refused(kind: Kind) -> None:
    head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, NUM_CLASSES))
    first, _ = make_blocks(auxiliary=head)
    first.forward(batch(kind))
    with pytest.raises(ModelError, match=IN_PLACE.format("output", 0)):
        first.learn() if kind is Kind.TRAIN else first.evaluate()


class Clamping(nn.CrossEntropyLoss):
    """Changes the targets, which the next block of the process would learn from."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().forward(logits, targets.clamp_(max=1))


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_a_loss_that_changes_the_targets_is_refused(kind: Kind) -> None:
    first, _ = make_blocks()
    first._task_loss = Clamping()
    first.forward(batch(kind))
    with pytest.raises(ModelError, match=r"loss of block 0 changes the targets in place.*clone"):
        first.learn() if kind is Kind.TRAIN else first.evaluate()


class Brightening(Own):
    """Changes the image, which the next block of the process would see so."""

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        lesson.fields[IMAGE].add_(1)
        return super().local_loss(auxiliary, lesson, task_loss)


def test_a_method_that_changes_another_field_is_refused() -> None:
    first, _ = make_blocks(auxiliary=nn.Linear(WIDTH, NUM_CLASSES))
    first.method = Brightening(nn.Identity())
    first.forward(batch().with_tensors(**{IMAGE: torch.zeros(5, WIDTH)}))
    with pytest.raises(ModelError, match=r"method of block 0 changes the field 'image' in place"):
        first.learn()


class Halving(Own):
    """Halves what it is given of a later layer, as other blocks may be, too."""

    slow_from = "next"
    lag = 1

    def take_slow(self, auxiliary: nn.Module, parameters: Tensor) -> None:
        parameters.mul_(0.5)


def test_a_method_that_changes_a_later_layer_s_parameters_is_refused() -> None:
    first, second = make_blocks(auxiliary=nn.Linear(WIDTH, NUM_CLASSES))
    first.method = Halving(nn.Identity())
    first.forward(batch())
    match = r"take_slow of tests\.test_block:Halving changes the parameters in place.*clone"
    with pytest.raises(ModelError, match=match):
        first.learn(slow=second.published_parameters())


class Dims(nn.Module):
    """Adds half of the image, which it halves in place."""

    def forward(self, fields: dict[str, Tensor]) -> Tensor:
        return fields[IMAGE].mul_(0.5)


@pytest.mark.parametrize("kind", [Kind.TRAIN, Kind.EVALUATE])
def test_context_that_changes_another_field_is_refused(kind: Kind) -> None:
    _, second = make_blocks()
    second.modules = replace(second.modules, context=Dims())
    message = batch(kind).with_tensors(**{IMAGE: torch.zeros(5, WIDTH)})
    with pytest.raises(ModelError, match=r"method of block 1 changes the field 'image' in place"):
        second.forward(message)


def test_changes_in_place_inside_a_block_are_its_own_business() -> None:
    first, _ = make_blocks(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))
    learn(first, batch())
    learn(first, batch(step=2))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_updates_nothing(scale: float) -> None:
    first, _ = make_blocks()
    learn(first, batch())
    before = digest([first])
    first.forward(batch(step=2, scale=scale))
    with pytest.raises(NonFiniteLoss, match=r"loss of block 0 is (nan|inf).*optimizer\.lr"):
        first.learn()
    assert digest([first]) == before


def test_before_the_first_update_no_learning_rate_is_blamed() -> None:
    first, _ = make_blocks()
    first.forward(batch(scale=float("nan")))
    with pytest.raises(NonFiniteLoss, match=r"block 0 is nan with first values") as caught:
        first.learn()
    assert "look at the loss and the data" in str(caught.value)
    assert "optimizer" not in str(caught.value)


def test_on_a_gpu_a_loss_is_looked_at_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose losses nobody waits for."""
    first, _ = make_blocks()
    monkeypatch.setattr(first._check, "looks_late", True)
    monkeypatch.setattr(Tensor, "item", None)
    learn(first, batch())
    assert first.take_training().samples == 5
    for step, scale in ((2, 1.0), (3, float("nan")), (4, 1.0)):
        learn(first, batch(step=step, scale=scale))
    with pytest.raises(NonFiniteLoss, match=r"loss of block 0 became nan within the last 15"):
        first.take_training()


@pytest.mark.parametrize("on_nonfinite", ["skip", "ignore"])
def test_only_who_stops_can_look_late(on_nonfinite: str) -> None:
    for device in ("cpu", "cuda"):
        assert not LossCheck(0, on_nonfinite, torch.device(device)).looks_late
        assert LossCheck(0, "stop", torch.device(device)).looks_late == (device == "cuda")


def test_a_checkpoint_is_not_taken_after_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums are looked at before it, however seldom metrics are written."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LossCheck, "may_learn_from", lambda *_: True)
    monkeypatch.setattr(LossCheck, "check_tally", checked_late)
    base = recipe().with_settings(["optimizer.lr=1e20", "runtime.log_every_steps=1000"])
    with pytest.raises(WorkerError, match=r"step 3, .*NonFiniteLoss: .*became nan"):
        ppll.Trainer(base, out=tmp_path / "run").fit()
    found = [p.name for p in (tmp_path / "run" / "checkpoints").glob("*/manifest.json")]
    assert found == ["manifest.json"]  # of step 0


def checked_late(check: LossCheck, tally: Tally, real: Any = LossCheck.check_tally) -> None:
    check.looks_late = True
    real(check, tally)


def test_evaluation_changes_nothing_and_counts() -> None:
    norm = [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)]
    first, _ = make_blocks(*norm)
    learn(first, batch())
    first.counts.take()
    before = digest([first])
    sent = [first.forward(batch(Kind.EVALUATE, step)).features for step in (2, 3)]
    first.evaluate()
    assert digest([first]) == before
    assert torch.equal(*sent)
    assert first.counts.take().samples == 5


def test_each_forward_is_learned_from_once() -> None:
    first, _ = make_blocks()
    learn(first, batch())
    with pytest.raises(AssertionError, match="once after each forward"):
        first.learn()


def test_a_learning_rate_of_its_own() -> None:
    """Plain SGD, so the first update is the rate times the gradient."""
    plain = {"momentum": 0, "nesterov": False, "weight_decay": 0}
    blocks = make_blocks(optimizer={**plain, "blocks": {"1": {"lr": 0.025}}})
    for block, rate in zip(blocks, (0.1, 0.025), strict=True):
        before = values(block)
        learn(block, batch())
        for old, new, gradient in zip(before, values(block), gradients(block), strict=True):
            torch.testing.assert_close(old - new, rate * gradient)


def test_clip_norm_bounds_the_gradient_of_the_whole_block() -> None:
    def norm(**optimizer: float) -> float:
        first, _ = make_blocks(optimizer=optimizer)
        learn(first, batch(scale=100))
        return float(torch.cat([g.flatten() for g in gradients(first)]).norm())

    assert norm() > 0.9
    assert norm(clip_norm=0.5) == pytest.approx(0.5, rel=1e-3)


def dropped(seed: int = 0, step: int = 1, history: int = 0) -> Tensor:
    """Which features a dropout layer lets through, whatever was drawn before."""
    first, _ = make_blocks(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), seed=seed)
    torch.manual_seed(history)
    return first.forward(batch(step=step)).features == 0


class Noisy(nn.Module):
    """Drops in evaluations, too."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(features, 0.5, training=True)


def evaluated(
    *places: int, number: int = 3, split: str = "test", step: int = 1
) -> tuple[Tensor, ...]:
    """What leaves a block that draws, of equal messages at some places of an evaluation."""
    first, _ = make_blocks(nn.Linear(WIDTH, WIDTH), Noisy())
    message = replace(batch(Kind.EVALUATE), split=split, step=step)
    return tuple(
        first.forward(replace(message, sequence=number + i, part=i, num_parts=i + 1)).features
        for i in places
    )


def test_an_evaluation_is_a_function_of_seed_step_and_place() -> None:
    """Not of a message's number, which is another where the run went on from a checkpoint, nor of
    what was evaluated before."""
    one, two = evaluated(0, 1)
    assert torch.equal(torch.stack(evaluated(0, 1, number=700)), torch.stack((one, two)))
    assert torch.equal(evaluated(1)[0], two)
    assert not torch.equal(one, two)
    assert not torch.equal(one, evaluated(0, step=2)[0])
    assert not torch.equal(one, evaluated(0, split="validation")[0])


def test_dropout_is_a_function_of_seed_and_step() -> None:
    assert torch.equal(dropped(step=2), dropped(step=2, history=1))
    assert not torch.equal(dropped(step=2), dropped(step=3))
    assert not torch.equal(dropped(seed=0), dropped(seed=1))


def test_blocks_drop_differently() -> None:
    """The same dropout layer, the same step, another block."""
    modules = [nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)]
    first, second = make_blocks(*modules)
    second.modules = first.modules
    sent = [block.forward(batch()).features == 0 for block in (first, second)]
    assert not torch.equal(*sent)


def test_what_was_saved_can_be_loaded() -> None:
    first, _ = make_blocks()
    other, _ = make_blocks(seed=1)
    learn(first, batch())
    tensors = dict(first.modules.named_tensors())
    other.load(tensors, dict(first.optimizer_tensors()))
    assert digest([other]) == digest([first])
    del tensors["0.weight"]
    with pytest.raises(ModelError, match=r"0\.weight is missing, the network needs shape \(6, 6\)"):
        other.load(tensors, {})


def parts_of(message: Message, *sizes: int) -> list[Message]:
    """A batch as messages of these sizes."""
    total, start, parts = sum(sizes), 0, []
    for index, size in enumerate(sizes):
        tensors = {k: t[start : start + size].clone() for k, t in message.tensors.items()}
        where = {"part": index, "num_parts": len(sizes), "share": size / total}
        parts.append(replace(message, tensors=tensors, **where))
        start += size
    return parts


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (1, 1, 1, 1, 1), (4, 1)])
def test_a_batch_in_parts_is_learned_from_as_a_whole(sizes: tuple[int, ...]) -> None:
    """Up to the order of sums; without batch norm, which sees a message only."""
    whole, _ = make_blocks(optimizer={"clip_norm": 0.1})
    parted, _ = make_blocks(optimizer={"clip_norm": 0.1})
    for step in (1, 2):
        learn(whole, batch(step=step))
        before = values(parted)
        for part in parts_of(batch(step=step), *sizes):
            assert all(map(torch.equal, before, values(parted)))
            learn(parted, part)
    torch.testing.assert_close(values(parted), values(whole), rtol=1e-5, atol=1e-7)
    assert parted.counts.take().loss == pytest.approx(whole.counts.take().loss)


def test_parts_of_a_batch_drop_differently() -> None:
    first, _ = make_blocks(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
    parts = parts_of(batch(), 2, 2)
    zeros = []
    for part in parts:
        zeros.append(first.forward(replace(part, tensors=parts[0].tensors)).features == 0)
        first.learn()
    assert not torch.equal(*zeros)


def nan_batch(step: int) -> Message:
    return batch(step=step, scale=float("nan"))


def with_norm(**tree: Any) -> Block:
    return make_blocks(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), **tree)[0]


@pytest.mark.parametrize("sizes", [(5,), (2, 3)])
def test_a_skipped_batch_leaves_no_trace(sizes: tuple[int, ...]) -> None:
    block = with_norm(on_nonfinite="skip")
    learn(block, batch(step=1))
    before = digest([block])
    for part in parts_of(nan_batch(step=2), *sizes):
        learn(block, part)
    assert digest([block]) == before
    assert block.counts.take().skipped == 5
    learn(block, batch(step=3))
    assert digest([block]) != before


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_is_skipped_skips_the_whole_batch(bad: int) -> None:
    block = with_norm(on_nonfinite="skip")
    before = digest([block])
    for part in (0, 1):
        whole = nan_batch(step=1) if part == bad else batch()
        learn(block, parts_of(whole, 2, 3)[part])
    assert digest([block]) == before
    tally = block.counts.take()
    assert (tally.samples, tally.skipped) == (0, 5)


class HugeGradient(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class Explodes(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return HugeGradient.apply(inputs)


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    block, _ = make_blocks(nn.Linear(WIDTH, WIDTH), Explodes(), on_nonfinite="skip")
    before = digest([block])
    learn(block, batch())
    assert digest([block]) == before


def test_a_loss_that_is_not_finite_may_be_ignored() -> None:
    block, _ = make_blocks(on_nonfinite="ignore")
    learn(block, nan_batch(step=1))
    assert any(value.isnan().any() for value in values(block))

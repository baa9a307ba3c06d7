"""Features in fewer bytes at every cut: what is lost, and that no placement changes a bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.blocks.lean import as_received, opened, packed, renamed
from ppll.errors import WorkerError
from ppll.message import PREVIOUS, Kind, Message
from ppll.methods import Lesson, LocalLoss, TaskLoss
from ppll.methods.greedy import Greedy
from ppll.planning.measuring import measure
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.test_exits import said_by_training
from tests.thinning import slow_but

TYPES = ["bf16", "int8"]
every_type = pytest.mark.parametrize("dtype", TYPES)
every_shape = pytest.mark.parametrize("shape", [(5, 4, 6, 6), (5, 9, 8), (5, 12)])


@every_shape
def test_int8_is_off_by_half_a_step_at_most(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape) * torch.logspace(-3, 3, shape[1]).reshape(
        1, -1, *[1] * (len(shape) - 2)
    )
    found = as_received(features, "int8")
    where = {4: (2, 3), 3: (2,), 2: (1,)}[len(shape)]
    step = features.abs().amax(where, keepdim=True) / 127
    assert ((found - features).abs() <= 0.5001 * step).all()
    assert found.dtype is torch.float32


@every_type
def test_a_token_does_not_depend_on_the_others(dtype: str) -> None:
    """In a language model later ones are what it is to predict."""
    features = torch.randn(2, 5, 8)
    changed = features.clone()
    changed[:, -1] *= 100
    before, after = (as_received(rows, dtype) for rows in (features, changed))
    assert torch.equal(before[:, :-1], after[:, :-1])


def test_bf16_rounds() -> None:
    features = torch.randn(3, 4, 5, 5)
    assert torch.equal(as_received(features, "bf16"), features.bfloat16().float())


@every_type
@every_shape
def test_a_sample_does_not_depend_on_the_others(shape: tuple[int, ...], dtype: str) -> None:
    features = torch.randn(shape) * torch.arange(1.0, 6).reshape(-1, *[1] * (len(shape) - 1))
    alone = torch.cat([as_received(sample, dtype) for sample in features.split(1)])
    assert torch.equal(as_received(features, dtype), alone)


def test_nothing_but_zeros_stays_so() -> None:
    assert torch.equal(as_received(torch.zeros(2, 3, 4, 4), "int8"), torch.zeros(2, 3, 4, 4))


@every_type
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float, dtype: str) -> None:
    features = torch.ones(2, 3, 4, 4)
    features[1, 2, 0, 0] = value
    found = as_received(features, dtype)
    assert not found[1, 2, 0, 0].isfinite()
    assert torch.equal(found[0], torch.ones(3, 4, 4))


@every_type
def test_a_plan_counts_what_travels(dtype: str) -> None:
    plain, lean = (
        measure(recipe().with_settings(settings), repeats=1)
        for settings in ([], [f"split.features_dtype={dtype}"])
    )
    share = {"bf16": 0.5, "int8": 0.25 + 1 / 64}[dtype]  # maps of 8 x 8
    targets = 10 * 8
    features = lean.layers[1].leaving_bytes - targets
    assert features == share * (plain.layers[1].leaving_bytes - targets)
    assert lean.recipe != plain.recipe


def test_bytes_that_travel() -> None:
    features = torch.randn(8, 16, 8, 8)
    sizes = [sum(t.nbytes for t in packed(features, dtype).values()) for dtype in (None, *TYPES)]
    assert sizes == [features.nbytes, features.nbytes // 2, features.nbytes // 4 + 8 * 16 * 4]


def test_a_field_may_change_its_name() -> None:
    fields = renamed(packed(torch.ones(2, 3), "int8"), "previous")
    assert torch.equal(opened(fields, "int8")["previous"], torch.ones(2, 3))


@pytest.mark.parametrize(
    ("method", "network", "dtype"),
    slow_but(
        [("dgl", "resnet", "bf16"), ("sgr", "resnet", "int8")],
        itertools.product(["dgl", "contsup", "sgr"], ["resnet", "vit"], TYPES),
    ),
)
def test_the_same_bits_on_every_placement(method: str, network: str, dtype: str) -> None:
    settings = [f"split.features_dtype={dtype}"]
    if method == "contsup":
        settings.append("method.context=R1E")
    base = small_recipe(network, method)
    lean = base.with_settings(settings)
    digests = {digest(train_interleaved(lean, stages)) for stages in (1, 4)}
    assert len(digests) == 1
    assert digests != {digest(train_interleaved(base.with_settings(settings[1:]), 1))}


class Remembers(Greedy):
    """Takes down what a loss sees of the input of the block before."""

    carries_input = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor | None] = []

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        self.seen += [lesson.fields.get(PREVIOUS), lesson.inputs]
        return super().local_loss(auxiliary, lesson, task_loss)


@every_type
def test_a_loss_sees_the_input_of_the_block_before_as_that_block_saw_it(dtype: str) -> None:
    lean = small_recipe().with_settings([f"split.features_dtype={dtype}"])
    method = Remembers()
    blocks = built_blocks(replace(blueprint_of(lean, MadeUpBatches()), method=method))
    tensors = MadeUpBatches().train_batch(0, 0)
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors)
    for block in blocks:
        message = block.forward(message)
        block.learn()
    previous, inputs = method.seen[::2], method.seen[1::2]
    assert previous[0] is None
    for before, own in zip(previous[1:], inputs[:-1], strict=True):
        assert before is not None
        assert own is not None
        assert before.dtype is own.dtype
        assert torch.equal(before, own)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("dtype", slow_but(["int8"], TYPES))
def test_real_processes_and_a_resumed_run_have_the_same_bits(tmp_path: Path, dtype: str) -> None:
    lean = recipe().with_settings([f"split.features_dtype={dtype}", "method.name=manpp"])
    one = ppll.Trainer(lean, out=tmp_path / "one").fit()
    out = tmp_path / "broken"
    with injected(Fault(1, 7)), pytest.raises(WorkerError):
        ppll.Trainer(lean.with_settings(["runtime.stages=3"]), out=out).fit()
    two = ppll.Trainer(lean.with_settings(["runtime.stages=2"]), out=out, resume=True).fit()
    assert two.weights_sha256 == one.weights_sha256
    assert two.exit_accuracy == one.exit_accuracy


@every_type
def test_exits_are_to_the_bit_what_training_said(tmp_path: Path, dtype: str) -> None:
    lean = recipe().with_settings(
        [f"split.features_dtype={dtype}", "method.name=contsup", "method.context=R1"]
    )
    ppll.Trainer(lean, out=tmp_path / "run").fit()
    accuracies, losses = said_by_training(tmp_path / "run")
    report = ppll.evaluate_exits(tmp_path / "run")
    assert list(report.exit_accuracy) == accuracies
    assert list(report.exit_loss) == losses

"""Learning from samples that are mixed of two: the loss by hand, every method, any placement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ppll
from ppll.blocks.block import Block
from ppll.message import MIX, OTHER_TARGETS, TARGETS, Kind, Message
from ppll.methods import methods
from tests.faults import recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.thinning import slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]
DEAF = {"lopt", "scpl"}
"""Methods whose blocks but the last never ask for the task's loss."""


class MixedBatches(MadeUpBatches):
    """Every sample is said to be mixed with the one before."""

    def __init__(self, mix: float | None = None) -> None:
        super().__init__()
        self._mix = mix

    def train_batch(self, epoch: int, index: int) -> Mapping[str, Tensor]:
        batch = super().train_batch(epoch, index)
        number = len(batch[TARGETS])
        mix = (
            torch.linspace(0, 1, number) if self._mix is None else torch.full((number,), self._mix)
        )
        return {**batch, OTHER_TARGETS: batch[TARGETS].roll(1), MIX: mix}


def after_a_step(batches: MadeUpBatches, method: str = "dgl") -> tuple[Block, Tensor]:
    """The last of two blocks after a training batch, and the logits that it learned from."""
    base = small_recipe(method=method, split_blocks=2, label_smoothing=0.1)
    first, last = built_blocks(blueprint_of(base, batches))
    tensors = batches.train_batch(0, 0)
    message = first.forward(Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors))
    logits = last.forward(message).features
    last.learn()
    return last, logits


def test_loss_and_accuracy_by_hand() -> None:
    last, logits = after_a_step(MixedBatches())
    batch = MixedBatches().train_batch(0, 0)
    logs = logits.double().log_softmax(1).tolist()
    total = 0.0
    for row, own, other, mix in zip(
        logs, *(batch[name].tolist() for name in (TARGETS, OTHER_TARGETS, MIX)), strict=True
    ):
        for target, share in ((own, mix), (other, 1 - mix)):
            total -= share * (0.9 * row[target] + 0.1 * sum(row) / len(row))
    tally = last.counts.take()
    assert tally.loss == pytest.approx(total / len(logs), rel=1e-5)
    hits = sum(row.index(max(row)) == t for row, t in zip(logs, batch[TARGETS], strict=True))
    assert tally.accuracy == hits / len(logs)


def test_a_share_of_one_is_the_loss_of_the_own_class() -> None:
    (mixed, _), (plain, _) = after_a_step(MixedBatches(1.0)), after_a_step(MadeUpBatches())
    assert mixed.counts.take().loss == pytest.approx(plain.counts.take().loss, rel=1e-6)


@pytest.mark.parametrize("method", slow_but(["infopro", "sgr"], LOCAL))
def test_every_method_learns_the_other_class_on_any_placement(method: str) -> None:
    """All blocks on one stage, and each on its own."""
    base = small_recipe("resnet", method)
    runs = [train_interleaved(base, stages, batches=MixedBatches()) for stages in (1, 4)]
    assert len({digest(blocks) for blocks in runs}) == 1
    plain = train_interleaved(base, 1)
    same = [digest([a]) == digest([b]) for a, b in zip(runs[0], plain, strict=True)]
    assert same == [method in DEAF] * 3 + [False]


def test_a_batch_in_parts_keeps_each_sample_with_its_share() -> None:
    base = small_recipe(accumulate=2)
    digests = {digest(train_interleaved(base, n, batches=MixedBatches())) for n in (1, 2, 4)}
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("method", slow_but(["infopro"], ["infopro", "sgr"]))
def test_processes_and_one_process_end_alike(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots have room for what mixed samples bring along."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    settings = [f"method.name={method}", "data.mixup=0.4", "data.cutmix=1", "data.cutout=2"]
    settings += ["data.randaugment=5"]
    base = recipe().with_settings(settings)
    hashes = [
        ppll.Trainer(base.with_settings([f"runtime.stages={n}"]), out=tmp_path / str(n)).fit()
        for n in (1, 4)
    ]
    assert hashes[0].weights_sha256 == hashes[1].weights_sha256

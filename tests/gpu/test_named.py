"""Networks and data that a recipe names by their module, and runs that are asked to stop, on a
GPU: the bits of one rank, of steps that are not recorded, of a run in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from tests.own_modules import give_module

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]

MODULE = """
from __future__ import annotations
import torch
from torch import nn
import ppll

def images(num: int = 60) -> ppll.Dataset:
    labels = torch.arange(num) % 3
    drawn = torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    inputs = labels[:, None, None, None] + drawn
    train, test = (inputs[:48], labels[:48]), (inputs[48:], labels[48:])
    return ppll.Dataset.from_arrays(train=train, test=test)

def network(width: int = 8) -> list[nn.Module]:
    first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Dropout(0.1))
    return [first, second, nn.Sequential(nn.Flatten(), nn.Linear(64 * width, 3))]
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_module(monkeypatch, tmp_path, "named_on_gpu", MODULE)


def named(*settings: str) -> ppll.Recipe:
    return ppll.Recipe.from_dict(
        {
            "data": {"name": "named_on_gpu:images", "batch_size": 12},
            "model": {"name": "named_on_gpu:network"},
            "split": {"blocks": 2},
            "method": {"name": "dgl", "auxiliary": "linear"},
            "optimizer": {"name": "sgd", "lr": 0.05, "fused": True},
            "schedule": {"name": "constant"},
            "train": {"epochs": 3},
            "runtime": {"devices": "cuda", "stall_timeout_s": 120},
        }
    ).with_settings(settings)


def fit(out: Path, *settings: str, **options: Any) -> ppll.Result:
    return ppll.Trainer(named(*settings), out=out, progress=False, **options).fit()


@pytest.mark.parametrize(
    "settings",
    [
        ["runtime.stages=2"],
        ["train.cuda_graphs=true", "runtime.concurrent_blocks=true"],
        ["runtime.data=host"],
    ],
    ids=" ".join,
)
def test_named_networks_and_data_end_the_same(settings: list[str], tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain")
    other = fit(tmp_path / "other", *settings)
    assert other.weights_sha256 == plain.weights_sha256
    assert other.test_accuracy == plain.test_accuracy


class Stopping(ppll.Callback):
    """Stops its trainer as soon as there is a run."""

    trainer: ppll.Trainer

    def on_start(self, *_: Any) -> None:
        self.trainer.stop()


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["runtime.stages=2"],
        ["train.cuda_graphs=true", "runtime.concurrent_blocks=true"],
    ],
    ids=" ".join,
)
def test_a_stopped_run_goes_on_to_the_same_bits(settings: list[str], tmp_path: Path) -> None:
    longer = [*settings, "train.epochs=40"]
    callback = Stopping()
    callback.trainer = ppll.Trainer(
        named(*longer), out=tmp_path / "run", progress=False, callbacks=[callback]
    )
    result = callback.trainer.fit()
    assert result.stopped
    assert 0 < result.step < 160
    whole = fit(tmp_path / "whole", *longer)
    assert fit(tmp_path / "run", *longer, resume=True).weights_sha256 == whole.weights_sha256

"""Recorded steps, and blocks at the same time, beside the same steps without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from tests.faults import recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]

GRAPHS = "train.cuda_graphs=true"
CONCURRENT = "runtime.concurrent_blocks=true"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def fit(out: Path, *settings: str, stages: int = 1, **options: Any) -> ppll.Result:
    base = recipe(stages=stages, devices="cuda", stall_timeout_s=120)
    settings = ("optimizer.fused=true", "train.epochs=4", *settings)
    return ppll.Trainer(base.with_settings(settings), out=out, **options).fit()


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=bf16"],
        ["train.channels_last=true"],
        ["optimizer.name=adamw", "train.ema=0.9", "optimizer.clip_norm=1.0"],
        ["method.name=contsup"],
        ["method.name=auglocal"],
        [
            *("model.name=vit", "model.width=16", "model.depth=4", "model.heads=2"),
            *("model.patch_size=4", "model.dropout=0.2"),
        ],
    ],
    ids=" ".join,
)
def test_graphs_and_overlap_change_no_bit(settings: list[str], tmp_path: Path) -> None:
    runs = {"eager": [], "graphs": [GRAPHS], "concurrent": [GRAPHS, CONCURRENT]}
    hashes = {
        name: fit(tmp_path / name, *settings, *more).weights_sha256 for name, more in runs.items()
    }
    assert len(set(hashes.values())) == 1, hashes


@pytest.mark.parametrize("method", ["sgr", "man", "backprop"])
def test_methods_that_exchange_more_can_be_recorded(method: str, tmp_path: Path) -> None:
    runs = {"eager": [], "graphs": [GRAPHS]}
    hashes = {
        name: fit(tmp_path / name, f"method.name={method}", *more).weights_sha256
        for name, more in runs.items()
    }
    assert len(set(hashes.values())) == 1, hashes


def test_stages_of_several_blocks_each_overlap(tmp_path: Path) -> None:
    runs = {"eager": (1, []), "two": (2, [GRAPHS, CONCURRENT])}
    hashes = {
        name: fit(tmp_path / name, *more, stages=stages).weights_sha256
        for name, (stages, more) in runs.items()
    }
    assert len(set(hashes.values())) == 1, hashes


def test_a_resumed_run_ends_as_one_in_one_go(tmp_path: Path) -> None:
    settings = [GRAPHS, CONCURRENT, "schedule.name=constant"]
    whole = fit(tmp_path / "whole", *settings)
    fit(tmp_path / "parts", *settings, "train.epochs=2")
    resumed = fit(tmp_path / "parts", *settings, resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.step == whole.step

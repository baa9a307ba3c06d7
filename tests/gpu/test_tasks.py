"""What there is to learn besides classes of images by cross-entropy, on a GPU: the same bits in
one rank and in two, recorded and not, and after a run that was broken off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ppll
from tests.token_rows import classifier, rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
    # Torch's compiler warns of its own ways.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]

RECORDED = {
    "graphs": ["train.cuda_graphs=true"],
    "concurrent": ["train.cuda_graphs=true", "runtime.concurrent_blocks=true"],
}


def inputs(number: int, seed: int) -> torch.Tensor:
    return torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))


def values() -> ppll.Dataset:
    """Five sums of numbers, each with its own weight in no loss."""
    train, test = inputs(48, 0), inputs(20, 1)
    sums = (part.unfold(1, 4, 1).sum(2) for part in (train, test))
    return ppll.Dataset.from_arrays(train=(train, next(sums)), test=(test, next(sums)))


def classes() -> ppll.Dataset:
    train, test = inputs(48, 0), inputs(20, 1)
    return ppll.Dataset.from_arrays(
        train=(train, train.argmax(1) % 5), test=(test, test.argmax(1) % 5), num_classes=5
    )


def tokens() -> ppll.Dataset:
    return ppll.Dataset.from_arrays(train=rows(48), test=rows(20, seed=1), num_tokens=20)


def dense() -> list[nn.Module]:
    first = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    return [first, nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 5)]


WEIGHTS = "{name='torch.nn:CrossEntropyLoss',options={weight=[1.0,2.0,0.5,1.0,3.0]}}"
TASKS: dict[str, tuple[list[str], Callable[[], list[nn.Module]], Callable[[], ppll.Dataset]]] = {
    "values": (["loss.name=torch.nn:MSELoss"], dense, values),
    "weights of classes": ([f"loss={WEIGHTS}"], dense, classes),
    "rows of tokens": ([], classifier, tokens),
    "values, compiled": (["loss.name=torch.nn:MSELoss", "train.compile=true"], dense, values),
    "own optimizer": (["optimizer={name='torch.optim:RAdam',lr=0.01}"], dense, classes),
    "capturable": (
        ["optimizer={name='torch.optim:Adam',lr=0.01,options={capturable=true}}"],
        dense,
        classes,
    ),
}


def fit(task: str, out: Path, *settings: str, **options: Any) -> ppll.Result:
    own, model, data = TASKS[task]
    recipe = ppll.Recipe.from_dict(
        {
            "data": {"batch_size": 8},
            "split": {"blocks": 2},
            "method": {"name": "dgl", "auxiliary": "linear"},
            "optimizer": {"name": "adamw", "lr": 0.01, "fused": True},
            "schedule": {"name": "constant"},
            "train": {"epochs": 3},
            "runtime": {"devices": "cuda", "stall_timeout_s": 120},
        }
    ).with_settings([*own, *settings])
    torch.manual_seed(0)
    return ppll.Trainer(
        recipe, model=model(), data=data(), out=out, progress=False, **options
    ).fit()


@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_end_as_one(task: str, tmp_path: Path) -> None:
    results = [fit(task, tmp_path / str(n), f"runtime.stages={n}") for n in (1, 2)]
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert results[0].exit_accuracy == results[1].exit_accuracy
    assert results[0].exit_loss == results[1].exit_loss


@pytest.mark.parametrize("how", RECORDED)
@pytest.mark.parametrize("task", ["values", "weights of classes", "rows of tokens"])
def test_recorded_steps_end_as_others(task: str, how: str, tmp_path: Path) -> None:
    eager = fit(task, tmp_path / "eager")
    recorded = fit(task, tmp_path / "recorded", *RECORDED[how])
    assert recorded.weights_sha256 == eager.weights_sha256


@pytest.mark.parametrize("task", ["values", "own optimizer", "capturable"])
def test_a_resumed_run_ends_as_one_in_one_go(task: str, tmp_path: Path) -> None:
    whole = fit(task, tmp_path / "whole")
    fit(task, tmp_path / "parts", "train.epochs=1")
    resumed = fit(task, tmp_path / "parts", resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256

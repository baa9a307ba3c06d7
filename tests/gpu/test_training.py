"""Whole runs and single blocks on a GPU, beside the processor's."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from ppll.message import Kind, Message
from ppll.models.initialising import initialise
from ppll.numerics import set_numerics
from ppll.planning.measuring import measure
from tests.faults import recipe
from tests.gpu.waiting import nobody_waits
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def fit(out: Path, *settings: str, stages: int = 1, **options: Any) -> ppll.Result:
    base = recipe(stages=stages, devices="cuda", stall_timeout_s=120).with_settings(settings)
    return ppll.Trainer(base, out=out, **options).fit()


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=bf16"],
        ["train.precision=fp16"],
        ["train.channels_last=true", "optimizer.fused=true"],
        ["method.name=man"],
        ["method.name=sgr"],
        ["optimizer.name=adamw", "optimizer.fused=true", "train.ema=0.9"],
    ],
    ids=" ".join,
)
def test_four_ranks_on_one_gpu_end_as_one(settings: list[str], tmp_path: Path) -> None:
    results = [fit(tmp_path / str(n), *settings, stages=n) for n in (1, 4)]
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert all(size > 0 for size in results[1].peak_memory_bytes)


@pytest.mark.parametrize("replicas", ["2", "[1,2,2,1]", "[2,2,1,1]"])
def test_replicas_on_one_gpu_have_the_same_bits_on_any_number_of_stages(
    replicas: str, tmp_path: Path
) -> None:
    least = 1 + sum(a != b for a, b in itertools.pairwise(replicas.strip("[]").split(",")))
    settings = [f"train.replicas={replicas}", "method.name=sgr"]
    results = [fit(tmp_path / str(n), *settings, stages=n) for n in (least, 4)]
    assert results[0].weights_sha256 == results[1].weights_sha256


def test_a_run_goes_on_from_the_gpu_to_the_processor_and_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for epochs, device in ((1, "cuda"), (2, "cpu"), (3, "cuda")):
        settings = [f"train.epochs={epochs}", "schedule.name=constant"]
        base = recipe(devices=device, stall_timeout_s=120).with_settings(settings)
        result = ppll.Trainer(base, out=run, resume=epochs > 1).fit()
        assert result.step == 4 * epochs


def steps(device: torch.device, **train: Any) -> tuple[list[Any], torch.Tensor]:
    """Two blocks after three steps, and all their parameters."""
    batches = MadeUpBatches((6,))
    recipe = small_recipe(split_blocks=2, **train)
    set_numerics(recipe.train, device)
    blueprint = blueprint_of(recipe, batches)
    blocks = [blueprint.build_block(i, device) for i in range(2)]
    for block in blocks:
        for prefix, module in block.modules.named():
            initialise(module.cpu(), prefix, 0)
            module.to(device)
    for step in (1, 2, 3):
        learn(blocks, message(batches, step).on(device))
    values = [p.flatten().cpu() for b in blocks for _, p in b.modules.named_parameters()]
    return blocks, torch.cat(values)


def message(batches: MadeUpBatches, step: int) -> Message:
    tensors = batches.train_batch(0, 0)
    return Message(kind=Kind.TRAIN, sequence=step - 1, step=step, tensors=tensors)


def learn(blocks: list[Any], sent: Message) -> None:
    for block in blocks:
        sent = block.forward(sent)
        block.learn()


def test_float32_is_nearly_what_the_processor_computes() -> None:
    (_, here), (_, there) = steps(torch.device("cpu")), steps(torch.device("cuda", 0))
    assert float((here - there).detach().norm() / here.detach().norm()) < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_step_waits_for_the_gpu(precision: str) -> None:
    device = torch.device("cuda", 0)
    blocks, _ = steps(device, precision=precision)
    sent = message(MadeUpBatches((6,)), 4).on(device)
    with nobody_waits():
        learn(blocks, sent)


def test_costs_are_measured_there() -> None:
    costs = measure(recipe(devices="cuda"), repeats=2)
    assert costs.device == torch.cuda.get_device_name(0)
    assert all(layer.forward_s > 0 for layer in costs.layers)


def test_peak_memory_is_that_of_the_run_alone(tmp_path: Path) -> None:
    """Both runs are of this process, and graphs keep their memory."""
    settings = ["train.cuda_graphs=true", "train.epochs=4"]
    large, small = (fit(tmp_path / n, f"model.width={n}", *settings) for n in ("64", "4"))
    assert 0 < small.peak_memory_bytes[0] < large.peak_memory_bytes[0]


def test_what_is_the_users_own_is_not_of_the_run(tmp_path: Path) -> None:
    own = torch.zeros(1 << 26, device="cuda")
    assert 0 < fit(tmp_path / "run").peak_memory_bytes[0] < own.nbytes


def test_many_runs_of_a_process_keep_no_more_memory_than_two(tmp_path: Path) -> None:
    settings = ["train.cuda_graphs=true", "runtime.concurrent_blocks=true", "train.epochs=4"]
    kept = []
    for number in range(4):
        fit(tmp_path / str(number), *settings)
        gc.collect()
        kept.append(torch.cuda.memory_allocated())
    assert kept[3] <= kept[1]


def test_a_run_leaves_generators_and_the_current_gpu_as_they_were(tmp_path: Path) -> None:
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state(), torch.cuda.current_device()
    fit(tmp_path / "run", "train.cuda_graphs=true", "train.epochs=4")
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.cuda.current_device() == before[1]

"""Rivals on GPUs: plain backpropagation on one, the others on two or more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from ppll.baselines import SYSTEMS, Layout, RecipeWork
from ppll.baselines.loops import Backprop
from ppll.bench.compare import compare
from ppll.errors import RecipeError, WorkerError
from ppll.testing import FAULT_VARIABLE, Fault
from tests.baselines.curves import NUM_BATCHES, curve_recipe, losses_of_control, rival
from tests.gpu.waiting import nobody_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def test_backprop_learns_as_on_the_processor() -> None:
    found = rival(curve_recipe("resnet", "cuda"))
    assert found.losses == pytest.approx(rival(curve_recipe("resnet", "cpu")).losses, rel=1e-3)
    assert len(found.seconds_per_batch) == NUM_BATCHES - 1
    assert all(0 < seconds < 60 for seconds in found.seconds_per_batch)
    # Of the GPU: the network and a batch of it, and nothing that a process has by itself.
    assert found.base_memory_bytes == (0,)
    assert 2**10 < found.peak_memory_bytes[0] < 2**29
    assert all(tensor.device.type == "cpu" for tensor in found.weights.values())


@pytest.mark.parametrize(("precision", "data"), [("float32", "host"), ("bf16", "device")])
def test_backprop_learns_as_the_control_on_the_gpu_does(
    precision: str, data: str, tmp_path: Path
) -> None:
    settings = (f"train.precision={precision}", f"runtime.data={data}")
    recipe = curve_recipe("resnet", "cuda", *settings)
    assert rival(recipe).losses == pytest.approx(
        losses_of_control(recipe, tmp_path / "run"), rel=1e-4
    )


def test_no_batch_of_a_rival_waits_for_the_gpu() -> None:
    layout = Layout(SYSTEMS["backprop"], 1, 1, 3)
    recipe = curve_recipe("resnet", "cuda", "runtime.data=device")
    part = RecipeWork(recipe).prepared(layout).part(layout, 0)
    runner = Backprop(part)
    first, *others = list(part.batches())
    assert first.inputs is not None
    assert first.inputs.is_cuda
    runner.step(first)
    part.update(1)
    with nobody_waits():
        for step, batch in enumerate(others, 2):
            runner.step(batch)
            part.update(step)


@pytest.mark.parametrize("system", ["ddp", "1f1b"])
def test_two_ranks_on_one_gpu_are_refused(system: str) -> None:
    num = 4 if SYSTEMS[system].kind == "pipeline" else 1
    with pytest.raises(RecipeError, match="ranks 0 and 1 on cuda:0, but NCCL takes one rank a GPU"):
        rival(curve_recipe("vit", "cuda:0"), system, num_ranks=2, num_microbatches=num)


def test_a_comparison_on_one_gpu() -> None:
    notes: list[str] = []
    rows = compare(
        curve_recipe("resnet", "cuda:0", "split.blocks=2"),
        2,
        ("ppll", "sequential", "backprop", "ddp"),
        accumulate=(),
        repeats=1,
        num_batches=5,
        noted=notes.append,
    )
    on = {row.system: row.devices for row in rows}
    one = ("cuda:0",)
    assert on == {"ppll": one * 2, "sequential": one, "backprop": one}
    assert [note.partition(":")[0] for note in notes] == ["ddp is left out"]
    assert all(row.rates[0] > 0 for row in rows)
    # Torch's, of the GPU: a process alone has more.
    assert all(2**10 < size < 2**29 for row in rows for size in row.peak_memory_bytes)
    ppll, sequential, _ = rows
    assert ppll.weights_sha256 == sequential.weights_sha256
    assert ppll.busy_fraction is None


@two_gpus
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("system", sorted(SYSTEMS.keys() - {"backprop"}))
def test_several_gpus_learn_as_one(system: str, precision: str) -> None:
    num = 4 if SYSTEMS[system].kind == "pipeline" else 1
    recipe = curve_recipe("vit", "cuda", f"train.precision={precision}")
    found = rival(recipe, system, num_ranks=2, num_microbatches=num)
    tolerance = 1e-4 if precision == "float32" else 1e-2
    assert found.losses == pytest.approx(rival(recipe).losses, rel=tolerance)
    assert len(found.seconds_per_batch) == NUM_BATCHES - 1
    assert all(seconds > 0 for seconds in found.seconds_per_batch)
    assert all(0 < size < 2**29 for size in found.peak_memory_bytes)
    assert all(size > 0 for size in found.bytes_sent)


@two_gpus
@pytest.mark.parametrize("system", ["ddp", "1f1b"])
def test_the_first_cause_on_gpus_is_named(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(rank=1, step=2, how="raise")
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    num = 4 if SYSTEMS[system].kind == "pipeline" else 1
    with pytest.raises(WorkerError, match=r"rank 1 .* failed at step 2") as caught:
        rival(curve_recipe("vit", "cuda"), system, num_ranks=2, num_microbatches=num)
    assert "InjectedFault" in str(caught.value)
    assert time.monotonic() - caught.value.failure.time_s < 5

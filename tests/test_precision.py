"""Float16 with a loss scale a block, and TF32: overflows, placements, resumed runs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ppll
from ppll.baselines.training import RecipeWork
from ppll.blocks import loss_scale
from ppll.blocks.block import NonFiniteLoss
from ppll.blocks.loss_scale import LossScale
from ppll.errors import RecipeError
from ppll.methods import methods
from ppll.numerics import set_numerics, torch_as_new
from ppll.sections import TrainConfig
from tests.faults import recipe
from tests.interleaving import digest, small_recipe, train_interleaved
from tests.test_block import batch, learn, make_blocks
from tests.test_resuming import broken, fit, same_result
from tests.thinning import slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]
TOO_LARGE = 2.0**24
"""A scale at which the gradients of the tests' networks overflow in float16."""


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def test_small_gradients_live_through_float16() -> None:
    """A gradient of 1e-8 is zero in float16; scaled by 65,536 it is not."""
    weight = nn.Parameter(torch.full((3,), 1.0))

    def gradient(scale: LossScale | None) -> torch.Tensor:
        weight.grad = None
        loss = (weight.half() * 1e-4).sum().float() * 1e-4
        (loss if scale is None else scale.scaled(loss)).backward()
        if scale is not None:
            scale.unscale([weight])
        assert weight.grad is not None
        return weight.grad

    assert torch.equal(gradient(None), torch.zeros(3))
    torch.testing.assert_close(gradient(LossScale()), torch.full((3,), 1e-8), rtol=2e-2, atol=0)


def test_the_scale_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale()
    assert scale.shrink()
    assert scale.value == 2.0**15
    for _ in range(1999):
        scale.grow()
    assert scale.value == 2.0**15
    scale.grow()
    assert (scale.value, scale.num_good) == (2.0**16, 0)
    for _ in range(20 * 2000):
        scale.grow()
    assert scale.value == 2.0**24
    falls = [scale.shrink() for _ in range(25)]
    assert falls == [True] * 24 + [False]
    assert scale.value == 1.0


def test_its_state_is_kept() -> None:
    first, second = LossScale(), LossScale()
    first.shrink()
    first.grow()
    second.load(first.tensor())
    assert (second.value, second.num_good) == (2.0**15, 1)
    second.load(None)
    assert (second.value, second.num_good) == (2.0**16, 0)


def test_an_overflow_is_left_out_without_a_trace() -> None:
    norm = [nn.Linear(6, 6), nn.BatchNorm1d(6)]
    first, _ = make_blocks(*norm, precision="fp16", ema=0.9)
    learn(first, batch())
    scale = first.updates.loss_scale
    assert scale is not None
    scale.value = TOO_LARGE
    tensors = {n: t.clone() for n, t in first.modules.named_tensors()}
    state = {n: t.clone() for n, t in first.optimizer_tensors()}
    learn(first, batch(step=2))
    assert scale.value == TOO_LARGE / 2
    for name, tensor in first.modules.named_tensors():
        assert torch.equal(tensor, tensors[name]), name
    after = dict(first.optimizer_tensors())
    changed = [name for name in state if not torch.equal(state[name], after[name])]
    assert changed == [name for name in state if name.endswith(".loss_scale")]


def test_learning_goes_on_when_the_scale_fits() -> None:
    first, _ = make_blocks(precision="fp16")
    before = digest([first])
    assert first.updates.loss_scale is not None
    first.updates.loss_scale.value = TOO_LARGE
    for step in range(1, 30):
        learn(first, batch(step=step))
    assert 1 < first.updates.loss_scale.value < TOO_LARGE
    assert first.updates.loss_scale.num_good > 0
    assert digest([first]) != before


def test_the_update_is_nearly_that_of_float32() -> None:
    found = {}
    for precision in ("float32", "fp16"):
        first, _ = make_blocks(precision=precision)
        learn(first, batch())
        found[precision] = torch.cat([p.flatten() for _, p in first.modules.named_parameters()])
    torch.testing.assert_close(found["fp16"], found["float32"], rtol=2e-2, atol=2e-3)
    assert not torch.equal(found["fp16"], found["float32"])


class Broken(torch.autograd.Function):
    """The identity; its gradient is infinite."""

    @staticmethod
    def forward(_ctx: object, features: torch.Tensor) -> torch.Tensor:
        return features.clone()

    @staticmethod
    def backward(_ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


class HasNoGradient(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return Broken.apply(features)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip", "ignore"])
def test_a_gradient_that_no_scale_makes_finite(on_nonfinite: str) -> None:
    layers = [nn.Linear(6, 6), HasNoGradient()]
    first, _ = make_blocks(*layers, precision="fp16", on_nonfinite=on_nonfinite)
    for step in range(1, 17):
        learn(first, batch(step=step))
    assert first.updates.loss_scale is not None
    assert first.updates.loss_scale.value == 1.0
    before = digest([first])
    first.forward(batch(step=17))
    if on_nonfinite == "stop":
        with pytest.raises(NonFiniteLoss, match=r"gradient of block 0 is not finite.*bf16"):
            first.learn()
    else:
        first.learn()
    assert digest([first]) == before


@pytest.mark.parametrize("network", ["resnet", "vit"])
@pytest.mark.parametrize("accumulate", slow_but([2], [1, 2]))
def test_any_placement_gives_the_same_bits(
    network: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "_FIRST", TOO_LARGE)
    base = small_recipe(network, precision="fp16", accumulate=accumulate)
    runs = [train_interleaved(base, stages) for stages in (1, 2, 4)]
    assert len({digest(blocks) for blocks in runs}) == 1
    scales = [block.updates.loss_scale.value for block in runs[0] if block.updates.loss_scale]
    assert len(scales) == 4
    assert min(scales) < TOO_LARGE  # some step overflowed


@pytest.mark.parametrize("method", slow_but(["scpl", "sgr"], LOCAL))
def test_every_method_learns_in_float16(method: str) -> None:
    base = small_recipe("resnet", method, "adamw", precision="fp16")
    assert len({digest(train_interleaved(base, stages)) for stages in (1, 4)}) == 1


@pytest.mark.slow
def test_a_resumed_run_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "_FIRST", 2.0**20)
    fit(tmp_path / "whole", "train.precision=fp16")
    broken(tmp_path / "run", 5, "train.precision=fp16")
    saved = tmp_path / "run" / "checkpoints" / "step-00000003" / "block-00.optimizer.safetensors"
    (scale,) = (t for n, t in load_file(saved).items() if n.endswith(".loss_scale"))
    assert scale[0] < 2.0**20
    fit(tmp_path / "run", "train.precision=fp16", resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.processes
def test_processes_and_one_process_end_alike(tmp_path: Path) -> None:
    base = recipe().with_settings(["train.precision=fp16", "optimizer.name=adamw"])
    hashes = [
        ppll.Trainer(base.with_settings([f"runtime.stages={n}"]), out=tmp_path / str(n)).fit()
        for n in (1, 4)
    ]
    assert hashes[0].weights_sha256 == hashes[1].weights_sha256


def test_a_change_of_precision_starts_the_scale_afresh(tmp_path: Path) -> None:
    broken(tmp_path / "run", 5)
    allowed = ["train.precision"]
    with pytest.raises(RecipeError, match=r"train\.precision \(was 'float32', is 'fp16'\)"):
        fit(tmp_path / "run", "train.precision=fp16", resume=True)
    fit(tmp_path / "run", "train.precision=fp16", resume=True, allow_change=allowed)


def test_what_is_no_precision_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.precision: .*'float32', 'bf16' or 'fp16'.*fp8"):
        recipe().with_settings(["train.precision=fp8"])


def test_rivals_scale_no_loss() -> None:
    work = RecipeWork(recipe().with_settings(["train.precision=fp16"]))
    with pytest.raises(RecipeError, match="a rival scales no loss"):
        work.prepared(layout=None)  # type: ignore[arg-type]  # not looked at before


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_set_in_the_rank_and_put_back(tf32: bool) -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (cuda.allow_tf32, cudnn.allow_tf32)
    with torch_as_new():
        set_numerics(TrainConfig(tf32=tf32), torch.device("cpu"))
        assert (cuda.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
    assert (cuda.allow_tf32, cudnn.allow_tf32) == before


def test_generators_of_gpus_and_the_current_one_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lists stand for two GPUs that are in use."""
    states, entered = ["first", "second"], list[int]()
    fakes = {
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 1,
        "get_rng_state": states.__getitem__,
        "set_rng_state": lambda state, device: states.__setitem__(device, state),
        "device": lambda index: nullcontext(entered.append(index)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with torch_as_new():
        states[:] = "others", "others"
    assert states == ["first", "second"]
    assert entered == [1]


def test_tf32_changes_nothing_on_processors_and_is_recorded(tmp_path: Path) -> None:
    results = [fit(tmp_path / v, f"train.tf32={v}") for v in ("true", "false")]
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert "tf32 = true" in (tmp_path / "true" / "config.toml").read_text()

"""Every rival makes the update of plain backpropagation, in real processes over gloo.

A vision transformer normalises every sample by itself, so slices of a batch add up to the batch.
Batch norm does not: there the reference takes the batch in the same slices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ppll
from ppll.baselines import RecipeWork, accuracy_of, run_baseline
from ppll.blocks.optimization import Schedule, build_optimizer
from ppll.config import Recipe
from ppll.data import load_batches
from ppll.errors import RecipeError, WorkerError
from ppll.message import FEATURES, MIX, OTHER_TARGETS, TARGETS
from ppll.models import initialise, models

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("nothing_left_behind")]

NUM_BATCHES = 2
NUM_SLICES = 4
PIPELINES = ("gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v")
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2},
    "resnet": {"name": "resnet", "depth": 8, "width": 4},
    "own": {"name": "tests.token_rows:classifier"},
    "several tensors": {"name": "tests.structures:dict_model"},
}
CUTS = {"vit": (1, 2, 4), "resnet": (1, 2, 3)}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
"""Float32 sums in another order: an update differs in the seventh digit of its largest values."""


def recipe(model: str, **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "data": {
            "name": "synthetic",
            "shape": [1, 8, 8],
            "num_classes": 3,
            "num_train": 70,
            "num_test": 20,
            "batch_size": 32,
            "crop": 1,
            "drop_last": True,
        },
        "model": MODELS[model],
        "optimizer": {"name": "sgd", "lr": 0.1, "clip_norm": 0.5},
        "schedule": {"warmup_epochs": 1},
        "train": {"epochs": 2, "seed": 5, "label_smoothing": 0.1},
    }
    return Recipe.from_dict({**tree, **sections})


class Plain:
    """Backpropagation in a few lines that share nothing with the rivals' own loops."""

    def __init__(self, recipe: Recipe, num_slices: int) -> None:
        train = recipe.train
        loader = load_batches(recipe.data, seed=train.seed)
        network = models.build(recipe.model.name, recipe.model.options, (1, 8, 8), 3)
        for layer in network.layers:
            initialise(layer.module, layer.name, train.seed)
        self.model = network.as_module()
        optimizer = build_optimizer(recipe.optimizer, 0, [self.model])
        schedule = Schedule(recipe.schedule, 2 * loader.steps_per_epoch, loader.steps_per_epoch)
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        for step in range(1, NUM_BATCHES + 1):
            batch = loader.train_batch(*divmod(step - 1, loader.steps_per_epoch))
            optimizer.zero_grad()
            self._backward(batch, num_slices, train.label_smoothing)
            self.gradients = {n: p.grad.clone() for n, p in self.model.named_parameters()}
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * schedule.factor(step)
            optimizer.step()

    def _backward(self, batch: dict[str, Tensor], num_slices: int, smoothing: float) -> None:
        total = 0.0
        fields = {OTHER_TARGETS: batch[TARGETS], MIX: torch.ones(len(batch[TARGETS])), **batch}
        names = (FEATURES, TARGETS, OTHER_TARGETS, MIX)
        for inputs, *targets, mix in zip(
            *(fields[n].chunk(num_slices) for n in names), strict=True
        ):
            logits = self.model(inputs)
            own, other = (
                nn.functional.cross_entropy(logits, t, label_smoothing=smoothing, reduction="none")
                for t in targets
            )
            loss = (mix * own + (1 - mix) * other).mean()
            (loss / num_slices).backward()
            total += loss.item() / num_slices
        self.losses.append(total)


def run(system: str, recipe: Recipe, cuts: tuple[int, ...] | None = None, **options: Any) -> Any:
    num_ranks = 1 if system == "backprop" else 2
    is_pipeline = system in PIPELINES
    chunks = num_ranks * (1 if system in ("gpipe", "1f1b") else 2)
    return run_baseline(
        system,
        RecipeWork(recipe, cuts[: chunks - 1] if cuts and is_pipeline else None),
        num_ranks=num_ranks,
        num_microbatches=NUM_SLICES if is_pipeline else 1,
        num_batches=NUM_BATCHES,
        keeps_gradients=True,
        timeout_s=60,
        **options,
    )


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("system", ["backprop", "ddp", *PIPELINES])
def test_a_rival_makes_the_update_of_plain_backpropagation(system: str) -> None:
    plain = Plain(recipe("vit"), num_slices=1)
    result = run(system, recipe("vit"), CUTS["vit"])
    assert result.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_same(result.gradients, plain.gradients)
    assert_same(result.weights, plain.model.state_dict())
    assert accuracy_of(recipe("vit"), result.weights) == pytest.approx(accuracy(plain), abs=0.051)


@pytest.mark.parametrize("system", ["backprop", "ddp", "1f1b"])
def test_a_rival_learns_from_the_same_mixed_samples(system: str) -> None:
    """A replica makes its slice of a batch, the last rank of a pipeline the targets alone."""
    data = {**recipe("vit").data.model_dump(), "mixup": 0.5, "cutmix": 1.0, "cutout": 3}
    plain = Plain(recipe("vit", data=data), num_slices=1)
    result = run(system, recipe("vit", data=data), CUTS["vit"])
    assert result.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_same(result.gradients, plain.gradients)


@pytest.mark.parametrize("system", ["backprop", "1f1b"])
def test_a_rival_learns_by_the_loss_that_the_recipe_names(system: str) -> None:
    train = {"epochs": 2, "seed": 5}
    plain = Plain(recipe("vit", train={**train, "label_smoothing": 0.3}), num_slices=1)
    loss = {"name": "torch.nn:CrossEntropyLoss", "options": {"label_smoothing": 0.3}}
    result = run(system, recipe("vit", train=train, loss=loss), CUTS["vit"])
    assert result.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_same(result.gradients, plain.gradients)


def accuracy(plain: Plain) -> float:
    batches = load_batches(recipe("vit").data, seed=5).evaluation_batches("test")
    with torch.no_grad():
        hits = [plain.model.eval()(b[FEATURES]).argmax(1) == b[TARGETS] for b in batches]
    return torch.cat(hits).float().mean().item()


TOKENS: dict[str, Any] = {
    "data": {
        **{"name": "synthetic", "shape": [7], "num_tokens": 20, "num_classes": 3},
        **{"num_train": 70, "num_test": 20, "batch_size": 32, "drop_last": True},
    },
    "method": {"name": "backprop"},
    "train": {"epochs": 2, "seed": 5, "max_steps": NUM_BATCHES},
}


@pytest.mark.parametrize("system", ["backprop", "ddp", "1f1b"])
def test_a_network_that_is_named_by_its_module_is_trained_alike(
    system: str, tmp_path: Path
) -> None:
    """It draws its own first values; PPLL's control has the same."""
    tokens = recipe("own", **TOKENS)
    ours = ppll.Trainer(tokens, out=tmp_path / "run").fit()
    result = run(system, tokens, (2,))
    ppll.export(tmp_path / "run", tmp_path / "plain.safetensors")
    assert_same(result.weights, load_file(tmp_path / "plain.safetensors"))
    assert accuracy_of(tokens, result.weights) == pytest.approx(ours.test_accuracy, abs=0.051)


def test_several_tensors_travel_within_a_rank_only() -> None:
    """A dict with a mask and a count in it, also where types are found by a trial run."""
    masked = recipe("several tensors")
    result = run("ddp", masked.with_settings(["train.precision=bf16"]))
    assert all(loss > 0 for loss in result.losses)
    assert 0 <= accuracy_of(masked, result.weights) <= 1
    with pytest.raises(RecipeError, match=r"gpipe sends one tensor .* returns .*tokens.*: compare"):
        run("gpipe", masked)


@pytest.mark.parametrize(("system", "num_slices"), [("ddp", 2), ("1f1b", 4), ("zero-bubble-v", 4)])
def test_batch_norm_sees_the_slices(system: str, num_slices: int) -> None:
    plain = Plain(recipe("resnet"), num_slices)
    result = run(system, recipe("resnet"), CUTS["resnet"])
    assert result.losses == pytest.approx(plain.losses, rel=1e-5)
    assert_same(result.gradients, plain.gradients)
    if system != "ddp":  # whose first replica alone keeps running statistics
        assert_same(result.weights, plain.model.state_dict())


def test_what_travels_is_counted_and_half_as_large_in_half_precision() -> None:
    sent = {}
    for precision in ("float32", "bf16"):
        train = {"epochs": 2, "precision": precision}
        sent[precision] = run("gpipe", recipe("resnet", train=train), (2,)).bytes_sent
    # Behind the second layer: 4 channels of 8 x 8 for 32 samples, and as large a gradient back.
    assert sent["float32"] == (32 * 4 * 64 * 4,) * 2
    assert sent["bf16"] == (32 * 4 * 64 * 2,) * 2


def test_times_leave_out_the_warm_up() -> None:
    result = run("gpipe", recipe("vit"), warm_up=1)
    assert len(result.seconds_per_batch) == 1
    assert len(result.losses) == 2
    assert 0 < result.median_s < 10
    assert all(seconds > 0 for seconds in result.processor_s)
    assert len(result.peak_memory_bytes) == len(result.base_memory_bytes) == 2
    assert min(result.peak_memory_bytes) >= max(result.base_memory_bytes) > 0


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    diverging = recipe("vit", optimizer={"lr": 1e30})
    with pytest.raises(WorkerError, match=r"rank 1 .* at step 2, .*NonFiniteLoss: the loss is nan"):
        run("gpipe", diverging)

"""Losses of the form ``module:Class``: what they are given, what is refused, any placement."""

from __future__ import annotations

import sys
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppll
from ppll.cli.app import main
from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.loss_trial import try_loss
from ppll.task_loss import build_own_loss, build_task_loss
from tests.interleaving import (
    NUM_CLASSES,
    MadeUpText,
    blueprint_of,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.test_resuming import broken, fit, same_result
from tests.thinning import slow_but

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

class Focal(nn.Module):
    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        losses = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - torch.exp(-losses)) ** self.gamma * losses).mean()

class Counting(Focal):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits, targets):
        self.seen += 1
        return super().forward(logits, targets)

class Squared(nn.Module):
    def forward(self, logits, targets):
        ones = torch.ones(len(targets), 1)
        wanted = torch.zeros_like(logits).scatter(1, targets[:, None], ones)
        return F.mse_loss(logits, wanted)

class Warming(Focal):
    num_calls = 0

    def forward(self, logits, targets):
        self.num_calls += 1
        return super().forward(logits, targets) * self.num_calls

class Projected(Focal):
    def __init__(self):
        super().__init__()
        self.register_buffer("projection", torch.randn(4, 4))

class Detached(Focal):
    def forward(self, logits, targets):
        return super().forward(logits.detach(), targets)

class Constant(Focal):
    def forward(self, logits, targets):
        return 0 * logits.square().sum()

class Number(Focal):
    def forward(self, logits, targets):
        return super().forward(logits, targets).item()

class Direction(nn.Module):
    def forward(self, logits, targets):
        chosen = F.normalize(logits, dim=1).gather(1, targets[:, None])
        return (1 - chosen).mean()

class Clamping(Focal):
    def forward(self, logits, targets):
        return super().forward(logits, targets.clamp_(max=1))

class Failing(Focal):
    def forward(self, logits, targets):
        raise ValueError("no such thing")
"""
BF16 = {"precision": "bf16"}
CROSS_ENTROPY = "torch.nn:CrossEntropyLoss"


@pytest.fixture(autouse=True)
def own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def with_loss(name: str, **options: Any) -> Recipe:
    tree = small_recipe().model_dump(mode="json", exclude_unset=True)
    return Recipe.from_dict({**tree, "loss": {"name": name, "options": options}})


def loss_of(name: str, **options: Any) -> Any:
    return build_task_loss(with_loss(name, **options), torch.device("cpu"))


def test_the_one_of_the_shelf_by_its_module_gives_the_same_bits() -> None:
    expected = digest(train_interleaved(small_recipe(), 1))
    assert digest(train_interleaved(with_loss(CROSS_ENTROPY), 1)) == expected


@pytest.mark.parametrize(
    "method", slow_but(["sgr"], ["dgl", "man", "sgr", "predsim", "lopt", "backprop"])
)
def test_any_placement_gives_the_same_bits(method: str) -> None:
    recipe = with_loss("own_losses:Focal").with_settings([f"method.name={method}"])
    stages = (1,) if method == "backprop" else (1, 2, 4)
    digests = {digest(train_interleaved(recipe, num)) for num in stages}
    assert len(digests) == 1
    plain = small_recipe(method=method)
    assert digests != {digest(train_interleaved(plain, 1))}


def test_options_are_given_and_rows_become_tensors() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    weights = [1.0, 2.0, 0.5]
    expected = nn.CrossEntropyLoss(torch.tensor(weights))(logits, targets)
    assert torch.equal(loss_of(CROSS_ENTROPY, weight=weights)(logits, targets), expected)
    whole = loss_of(CROSS_ENTROPY, weight=[1, 2, 4])
    assert torch.equal(
        whole(logits, targets), loss_of(CROSS_ENTROPY, weight=[1.0, 2.0, 4.0])(logits, targets)
    )
    assert loss_of("own_losses:Focal", gamma=0.0)(logits, targets) > loss_of("own_losses:Focal")(
        logits, targets
    )


def test_whole_numbers_and_single_ones_become_tensors_in_floating_point() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = loss_of(CROSS_ENTROPY, weight=[1.0, 2.0, 1.0])(logits, targets)
    assert torch.equal(loss_of(CROSS_ENTROPY, weight=[1, 2, 1])(logits, targets), expected)
    one: Any = build_own_loss(with_loss("torch.nn:BCEWithLogitsLoss", pos_weight=3))
    assert torch.equal(one.pos_weight, torch.tensor(3.0))
    number: Any = build_own_loss(with_loss("torch.nn:HuberLoss", delta=2))
    assert number.delta == 2


def test_rows_that_make_no_tensor_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"fails when it is built: .*Mend it or its options"):
        loss_of(CROSS_ENTROPY, weight=[[1.0], [1.0, 2.0]])


def test_evaluating_names_a_loss_that_is_gone_without_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "run", "loss.name=own_losses:Focal")
    (tmp_path / "own_losses.py").unlink()
    monkeypatch.delitem(sys.modules, "own_losses")
    with pytest.raises(RecipeError, match="cannot import 'own_losses'"):
        ppll.evaluate(tmp_path / "run")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"name": nn.MSELoss},
            r'loss.name: a class .* name it, as "torch.nn.modules.loss:MSELoss"',
        ),
        (nn.MSELoss(), r'loss: a MSELoss .* name it, as "torch.nn.modules.loss:MSELoss"'),
        ({"name": nn.functional.mse_loss}, r'a function .* as "torch.nn.functional:mse_loss"'),
        ({"options": {"weight": torch.ones(2)}}, r"a Tensor .* give a list, as by \.tolist\(\)"),
    ],
)
def test_objects_of_python_are_told_apart(loss: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({"loss": loss})


def test_tokens_are_samples_to_it() -> None:
    """Also in rows that are as long as there are tokens, which could be taken for classes."""
    recipe = small_recipe("gpt", optimizer="adamw")
    named = recipe.with_settings([f"loss.name={CROSS_ENTROPY}"])
    text = MadeUpText(num_tokens=NUM_CLASSES)
    try_loss(blueprint_of(named, text))
    digests = {digest(train_interleaved(named, n, batches=text)) for n in (1, 3)}
    assert digests == {digest(train_interleaved(recipe, 1, batches=text))}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["loss.name=focal"],
            r"loss.name: unknown loss 'focal'. Known: cross-entropy, module:Class .such as torch",
        ),
        (["loss.options.gamma=2"], r"loss.options are for a \"module:Class\", found loss.name = "),
        (
            ["loss.name=own_losses:Focal", "train.label_smoothing=0.1"],
            "loss.name = 'own_losses:Focal' is not possible with train.label_smoothing",
        ),
        (["loss.name=own_losses:Focal", "data.mixup=0.4"], "not possible with data.mixup and data"),
    ],
)
def test_what_cannot_go_together_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        small_recipe().with_settings(settings)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "own_losses:Focl",
            {},
            "unknown class of module 'own_losses' 'Focl'. Did you mean 'Focal'",
        ),
        ("torch.nn:MSEloss", {}, r"'MSEloss'\. Did you mean 'MSELoss'\?$"),
        ("torch.nn.functional:mse_loss", {}, "is no loss: it must be a subclass of torch.nn.Modul"),
        (
            "torch.nn:Linear",
            {"in_features": 3, "out_features": 1},
            r"has parameters \(weight, ",
        ),
        ("own_losses:Focal", {"gama": 1.0}, r"unknown option of loss .* Did you mean 'gamma'"),
        (
            "own_losses:Focal",
            {"gamma": "x"},
            r"fails on made-up predictions .*: TypeError",
        ),
        ("own_losses:Failing", {}, r"ValueError: no such thing \(.*own_losses.py, line \d+\)"),
        ("own_losses:Clamping", {}, r"changes its targets in place: .* targets\.clone\(\)"),
        ("own_losses:Detached", {}, "returned what has no gradient"),
        ("own_losses:Number", {}, r"returned \d\.\d+: return a tensor that is one number"),
        ("own_losses:Counting", {}, r"changes its buffers \(seen\), which no checkpoint holds"),
        ("own_losses:Warming", {}, r"for the same batch, .* may depend on its arguments alone"),
        (CROSS_ENTROPY, {"reduction": "sum"}, "for one that holds it twice, .* return the mean"),
        (CROSS_ENTROPY, {"reduction": "none"}, r"returned shape \(4,\): return a tensor that is o"),
        (
            CROSS_ENTROPY,
            {"weight": [1.0]},
            r"of shape \(4, 10\) and class indices of shape \(4,\): RuntimeError",
        ),
        (CROSS_ENTROPY, {"weight": [1, [2]]}, "fails when it is built: TypeError"),
        ("torch.nn:MSELoss", {}, "options; values to predict are targets in floating point"),
        ("own_losses:Constant", {}, "returned the same number whatever was predicted"),
    ],
)
def test_one_that_does_not_work_is_refused_before_the_run(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        ppll.Trainer(
            {"data": {"name": "digits"}, "loss": {"name": name, "options": options}},
            out=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_it_is_tried_in_the_precision_of_training() -> None:
    sections = {"data": {"name": "digits"}, "loss": {"name": "own_losses:Squared"}}
    ppll.Trainer(sections)
    ppll.Trainer({**sections, "loss": {"name": "torch.nn:MultiMarginLoss"}, "train": BF16})
    with pytest.raises(RecipeError, match=r"fails on made-up predictions .*: RuntimeError"):
        ppll.Trainer({**sections, "train": BF16})


@pytest.mark.parametrize("name", ["Focal", "Direction"])
def test_a_trial_lets_losses_pass_and_changes_no_random_state(name: str) -> None:
    """Also one that does not depend on how large predictions are."""
    before = torch.get_rng_state()
    ppll.Trainer({"data": {"name": "digits"}, "loss": {"name": f"own_losses:{name}"}})
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_loss_draws_is_a_function_of_the_seed() -> None:
    def drawn(*settings: str) -> Tensor:
        loss: Any = build_own_loss(with_loss("own_losses:Projected").with_settings(settings))
        return loss.projection

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(), first)
    assert not torch.equal(drawn("train.seed=9"), first)


@pytest.mark.slow
def test_a_run_goes_on_and_is_tested_alike(tmp_path: Path) -> None:
    settings = ["loss.name=own_losses:Focal", "loss.options.gamma=1.5"]
    fit(tmp_path / "whole", *settings)
    broken(tmp_path / "run", 5, *settings)
    result = fit(tmp_path / "run", *settings, resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == result.exit_accuracy
    report = ppll.evaluate_exits(tmp_path / "run")
    assert report.exit_accuracy == result.exit_accuracy
    plain = fit(tmp_path / "plain")
    assert plain.weights_sha256 != result.weights_sha256
    with pytest.raises(ppll.errors.PpllError, match=r"loss\.options \(was"):
        fit(tmp_path / "run", settings[0], resume=True)


def test_without_its_module_a_run_can_be_loaded_but_not_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "run", "loss.name=own_losses:Focal")
    monkeypatch.delitem(sys.modules, "own_losses")
    (tmp_path / "own_losses.py").unlink()
    invalidate_caches()
    assert ppll.load(tmp_path / "run").step
    with pytest.raises(RecipeError, match=r"cannot import 'own_losses' for loss.name"):
        ppll.evaluate(tmp_path / "run")


def test_another_loss_has_no_perplexity(tmp_path: Path) -> None:
    recipe = {
        "data": {"name": "stdlib-text", "length": 8, "only": ["idlelib"], "num_test": 8},
        "model": {"name": "gpt", "width": 16, "depth": 4, "heads": 2},
        "loss": {"name": "own_losses:Focal"},
        "train": {"max_steps": 2},
    }
    result = ppll.Trainer(recipe, out=tmp_path / "run").fit()
    assert result.test_accuracy is not None
    assert result.exit_perplexity is None


@pytest.mark.slow
@pytest.mark.processes
def test_processes_end_with_the_bits_of_one(tmp_path: Path) -> None:
    settings = ["loss.name=own_losses:Focal"]
    one = fit(tmp_path / "one", *settings)
    two = fit(tmp_path / "two", *settings, "runtime.stages=2")
    assert one.weights_sha256 == two.weights_sha256


def test_a_weight_of_the_classes_is_given_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["ppll", "train", "digits-resnet", "--dry-run", f"--set=loss.name={CROSS_ENTROPY}"]
    weight = [1.0] * 10
    monkeypatch.setattr(sys, "argv", [*args, f"--set=loss.options.weight={weight}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code in (0, None), capsys.readouterr().err


def test_gradients_are_those_of_the_loss() -> None:
    logits: Tensor = torch.randn(4, 3).requires_grad_()
    targets = torch.tensor([0, 1, 2, 0])
    loss_of("torch.nn:MultiMarginLoss")(logits, targets).backward()
    mine = logits.grad
    assert mine is not None
    twin = logits.detach().clone().requires_grad_()
    nn.MultiMarginLoss()(twin, targets).backward()
    assert torch.equal(mine, twin.grad)

"""The method that the documentation shows: outside the package, and at home everywhere."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import ppll
from ppll.blocks.block import Block
from ppll.cli.app import main
from ppll.config import Recipe
from ppll.data import load_dataset
from ppll.errors import ModelError, RecipeError, WorkerError
from ppll.methods import BlockSite, Lesson, Method
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import NETWORKS, blueprint_of, digest, small_recipe, train_interleaved
from tests.methods.trials import blocks_after_a_step, same_bits_everywhere
from tests.test_resuming import OWN, own_data, own_model
from tests.test_values import MadeUpValues

PAGE = (Path(__file__).parents[2] / "docs/methods/your-own.md").read_text(encoding="utf-8")
NAME = "decorrelated:Decorrelated"
MODULES = ("decorrelated", "pooled", "boosted", "peeking", "test_decorrelated")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the modules lie as the page shows them; found by Python until the test ends."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "my-methods"
    home.mkdir()
    codes = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.syspath_prepend(home)
    for module, code in zip(MODULES, codes, strict=True):
        (home / f"{module}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield home
    for module in MODULES:
        sys.modules.pop(module, None)


@pytest.mark.usefixtures("folder")
def test_the_auxiliary_network_of_the_page_is_one_like_others() -> None:
    base = small_recipe("resnet", "pooled:Pooled").with_settings(["method.hidden=8"])
    blocks_after_a_step(base)
    assert same_bits_everywhere(base)
    with pytest.raises(ModelError, match=r"pooled reads maps"):
        blocks_after_a_step(small_recipe("vit", "pooled:Pooled"))


@pytest.mark.usefixtures("folder")
def test_the_second_part_of_the_page_weighs_samples() -> None:
    base = small_recipe("resnet", "boosted:Boosted")
    blocks = blocks_after_a_step(base)
    assert same_bits_everywhere(base)
    site = blocks[0].site
    targets, features = torch.tensor([0, 1]), torch.randn(2, *site.feature_shape)
    given = {"doubt": torch.tensor([0.0, 1.0])}
    auxiliary, method = blocks[0].modules.auxiliary, blocks[0].method
    second = Lesson(features[1:], features[1:], targets[1:])
    both = Lesson(features, features, targets, late=given)
    assert auxiliary is not None
    auxiliary.eval()
    losses = [
        method.local_loss(auxiliary, lesson, cross_entropy).value for lesson in (second, both)
    ]
    assert torch.allclose(losses[0], losses[1])


@pytest.mark.usefixtures("folder")
def test_the_second_part_of_the_page_weighs_no_values() -> None:
    base = small_recipe("resnet", "boosted:Boosted").with_settings(["loss.name=torch.nn:MSELoss"])
    with pytest.raises(RecipeError, match=r"reads targets or predictions as those of classes"):
        blueprint_of(base, MadeUpValues())


@pytest.mark.usefixtures("folder")
def test_the_layer_of_the_page_is_what_the_next_block_was() -> None:
    base = small_recipe("resnet", "peeking:Peeking")
    assert same_bits_everywhere(base)
    blocks = train_interleaved(base.with_settings(["method.lag=1"]), 1)
    for block, behind in itertools.pairwise(blocks):
        assert block.slow is not None
        newest = block.slow.take()
        assert torch.equal(newest, behind.published_parameters())
        block.method.take_slow(block.modules.auxiliary, newest)
        copied = block.modules.auxiliary.layer.parameters()
        assert torch.equal(torch.cat([p.flatten() for p in copied]), newest)
        assert not any(p.requires_grad for p in block.modules.auxiliary.layer.parameters())


@pytest.mark.parametrize("name", ["boosted:Boosted", "peeking:Peeking"])
@pytest.mark.usefixtures("folder")
def test_the_classes_of_the_page_pass_the_trial(name: str) -> None:
    ppll.Trainer(recipe().with_settings([f"method.name={name}"])).check()


def test_the_page_tells_of_every_attribute_and_function() -> None:
    said = {
        name for name in vars(Method) if not name.startswith("_")
    } | Method.__annotations__.keys()
    said |= {f.name for f in dataclasses.fields(BlockSite)}
    assert [name for name in said if f"`{name}" not in PAGE] == []
    told = {n for n in Method.__annotations__ if f"\n        {n}: " in str(Method.__doc__)}
    assert told == Method.__annotations__.keys()


def own(**changes: str) -> Recipe:
    settings = [f"method.name={NAME}", "method.weight=0.2"]
    return recipe().with_settings([*settings, *(f"{k}={v}" for k, v in changes.items())])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.usefixtures("folder")
def test_the_class_of_the_page_is_a_method_like_others(network: str) -> None:
    base = small_recipe(network, NAME)
    blocks_after_a_step(base)
    assert same_bits_everywhere(base)
    others = base.with_settings(["method.auxiliary=linear"])
    assert digest(blocks_after_a_step(others)) != digest(blocks_after_a_step(base))


@pytest.mark.usefixtures("folder")
def test_correlation_is_from_0_to_below_1() -> None:
    from decorrelated import redundancy

    noise = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert redundancy(noise) < 0.01
    same = noise[:, :1].expand(-1, 8)
    assert redundancy(same).item() == pytest.approx(7 / 8, abs=1e-4)
    maps = noise[:, :, None, None].expand(-1, -1, 3, 2)
    tokens = noise[:, None].expand(-1, 5, -1)
    for features in (maps, tokens):
        assert redundancy(features).item() == pytest.approx(redundancy(noise).item(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.processes
def test_one_stage_two_stages_and_a_broken_run_come_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ppll.Trainer(own(), out=tmp_path / "one").fit()
    two = trained_by_the_command(tmp_path / "two", monkeypatch)
    assert two["weights_sha256"] == one.weights_sha256
    with injected(Fault(0, 8)), pytest.raises(WorkerError):
        ppll.Trainer(own(), out=tmp_path / "broken").fit()
    stages = own(**{"runtime.stages": "2"})
    resumed = ppll.Trainer(stages, out=tmp_path / "broken", resume=True).fit()
    assert resumed.weights_sha256 == one.weights_sha256


def trained_by_the_command(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """``result.json`` of a run of two stages, whose processes find the module where this does."""
    path = out.parent / "mine.toml"
    path.write_text(own().to_toml(), encoding="utf-8")
    command = ["ppll", "train", str(path), "--stages", "2", "--quiet", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    result: dict[str, object] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.processes
@pytest.mark.usefixtures("folder")
def test_a_run_is_evaluated_and_loaded_through_the_class(tmp_path: Path) -> None:
    base, run = own(), tmp_path / "run"
    result = ppll.Trainer(base, out=run).fit()
    for stages in (1, 2):
        evaluated = ppll.evaluate(run, stages)
        assert evaluated.exit_accuracy == result.exit_accuracy
        assert evaluated.weights_sha256 == result.weights_sha256
    test = load_dataset(base.data).test
    with torch.no_grad():
        hits = [e.argmax(1) == test.targets for e in ppll.load(run).exits(test.inputs)]
    assert [hit.float().mean().item() for hit in hits] == pytest.approx(list(result.exit_accuracy))


@pytest.mark.usefixtures("folder")
def test_a_run_goes_on_with_its_own_options_only(tmp_path: Path) -> None:
    ppll.Trainer(own(), out=tmp_path / "run").fit()
    with pytest.raises(RecipeError, match=r"method\.weight \(was 0\.2, is 0\.3\)"):
        ppll.Trainer(own(**{"method.weight": "0.3"}), out=tmp_path / "run", resume=True).fit()


def test_a_run_whose_class_is_not_found_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ppll.Trainer(own(), out=run).fit()
    sys.modules.pop("decorrelated")
    sys.path.remove(str(folder))
    for look in (ppll.evaluate, ppll.load):
        with pytest.raises(RecipeError, match=r"No module named 'decorrelated'.*PYTHONPATH"):
            look(run)
    ppll.export(run, tmp_path / "plain.safetensors")


WRONG = """
from ppll.methods import HeadMethod, LocalLoss

class Wrong(HeadMethod):
    default_auxiliary = "linear"

class Bare(Wrong):
    def local_loss(self, auxiliary, lesson, task_loss):
        return super().local_loss(auxiliary, lesson, task_loss).value

class Raises(Wrong):
    def local_loss(self, auxiliary, lesson, task_loss):
        return lesson.feature

class Late(Wrong):
    late_fields = ("gradient",)
    def late_part(self, lesson, loss):
        return {"gradient": lesson.inputs.grad.sum()}

class Undeclared(Wrong):
    def late_part(self, lesson, loss):
        return {"logits": loss.logits}

class Unsized(Undeclared):
    late_fields = ("logits",)

class Exit(Wrong):
    def exit(self, auxiliary, features):
        if auxiliary is None or auxiliary.training:
            return super().exit(auxiliary, features)
        return features.no_such_thing

class Infinite(Wrong):
    def local_loss(self, auxiliary, lesson, task_loss):
        return LocalLoss(lesson.features.sum().log() - float("inf"), None)

class Counting(Wrong):
    num_batches = 0
    def local_loss(self, auxiliary, lesson, task_loss):
        self.num_batches += 1
        return super().local_loss(auxiliary, lesson, task_loss)

class SetOnce(Wrong):
    warned, width = False, 0
    def local_loss(self, auxiliary, lesson, task_loss):
        self.warned = self.warned or lesson.features.ndim > 1
        self.width = self.width or lesson.features.shape[1]
        return super().local_loss(auxiliary, lesson, task_loss)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Bare",
            r"^ModelError: local_loss of wrong:Bare returned Tensor: return LocalLoss",
        ),
        (
            "Raises",
            r"'wrong:Raises' fails in block 0 .*'feature' \(.*wrong.py, line 13",
        ),
        ("Late", r"'wrong:Late' fails in block 0 .*AttributeError.*wrong.py, line 18\)"),
        ("Infinite", r"^RecipeError: the loss of block 0 is -inf with first values, before any"),
        ("Exit", r"'wrong:Exit' fails in block 0 .*'no_such_thing' \(.*wrong.py, line 31\)"),
        ("Undeclared", r"^ModelError: .* returned 'logits', .* late_fields says \(none\)"),
        ("Counting", r"^RecipeError: .*'wrong:Counting' changes num_batches of itself .* buffer"),
        ("Unsized", r"^ModelError: late_shapes of wrong:Unsized returned \(none\), .* 'logits'"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_class_that_does_not_work_is_refused_before_training(
    name: str,
    words: str,
    more: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    out = tmp_path / "run"
    command = ["ppll", "train", "digits-resnet", f"--set=method.name=wrong:{name}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", [*command, *more])
    with pytest.raises(SystemExit) as end:
        main()
    sys.modules.pop("wrong")
    err = " ".join(capsys.readouterr().err.split())
    assert (end.value.code, "Traceback" in err) == (2, False)
    assert re.search(words, err), err
    assert not out.exists()


def test_who_goes_on_after_such_a_loss_is_not_kept_from_it(folder: Path) -> None:
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    skips = ["method.name=wrong:Infinite", "train.on_nonfinite=skip"]
    ppll.Trainer(recipe().with_settings(skips)).check()
    sys.modules.pop("wrong")


def test_what_a_method_notes_once_is_its_own_affair(folder: Path) -> None:
    """That it warned, or how wide features are: the same wherever the block is."""
    (folder / "wrong.py").write_text(WRONG, encoding="utf-8")
    ppll.Trainer(recipe().with_settings(["method.name=wrong:SetOnce"])).check()
    sys.modules.pop("wrong")


@pytest.mark.usefixtures("folder")
def test_a_trial_changes_nothing(tmp_path: Path) -> None:
    model = own_model()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    state = torch.random.get_rng_state()
    settings = {**OWN, "method": {"name": NAME}}
    ppll.Trainer(settings, model=model, data=own_data(), out=tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert all(tensor.grad is None for tensor in model.parameters())


def test_methods_of_the_shelf_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "forward", None)
    ppll.Trainer(recipe()).check()

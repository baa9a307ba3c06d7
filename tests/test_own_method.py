"""Names of the form ``module:Class``: what is imported, and what is refused in which words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ppll
from ppll.blocks.blueprint import build_method
from ppll.cli.app import main
from ppll.errors import RecipeError, UsageError
from ppll.own_class import is_own_class
from ppll.own_method import build_own_method
from tests.interleaving import small_recipe

MODULE = """
from __future__ import annotations
from typing import TYPE_CHECKING
from torch import nn
from ppll.methods.base import Method
from ppll.methods.greedy import Greedy

class Mine(Greedy):
    def __init__(self, *, weight: float = 1.0, lag: int = 3) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError("weight must not be negative")
        self.weight, self.lag = weight, lag

class Positional(Greedy):
    def __init__(self, weight: float) -> None:
        super().__init__()

class Untyped(Greedy):
    def __init__(self, *, sizes: Sizes = ()) -> None:
        super().__init__()

class Unfinished(Method):
    pass

class Without(Greedy):
    def build_auxiliary(self, site):
        pass

class Failing(Greedy):
    def build_auxiliary(self, site):
        return nn.Linear(site.shape[0], site.num_classes)

class Lazy(Greedy):
    def build_auxiliary(self, site):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(site.num_classes))

class Reads(Greedy):
    slow_from, lag = "next", 2
    def __init__(self, *, says: dict) -> None:
        super().__init__()
        vars(self).update(says)

class Sharing(Greedy):
    def build_auxiliary(self, site):
        return nn.Sequential(*[layer.module for layer in site.layers_behind])

class Other:
    pass

def function() -> None:
    pass
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "modules" / "own_package"
    package.mkdir(parents=True)
    (package / "methods.py").write_text(MODULE, encoding="utf-8")
    (package / "broken.py").write_text("1 / 0", encoding="utf-8")
    (package / "torn.py").write_text("def", encoding="utf-8")
    (package / "leaves.py").write_text("raise SystemExit(0)", encoding="utf-8")
    (package.parent / "own_module.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        monkeypatch.delitem(sys.modules, name)


def test_only_a_name_with_a_colon_is_imported() -> None:
    assert is_own_class("own_package.methods:Mine")
    assert not is_own_class("dgl")


def test_options_are_checked_and_converted() -> None:
    method = build_own_method("own_package.methods:Mine", {"weight": 2})
    assert vars(method)["weight"] == 2.0
    recipe = small_recipe(method="own_package.methods:Mine").with_settings(["method.lag=5"])
    assert build_method(recipe).lag == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":", 'write "module:Class"'),
        ("own_package.methods:", 'write "module:Class"'),
        (":Mine", 'write "module:Class"'),
        ("own_package..methods:Mine", 'write "module:Class"'),
        ("own_module.py:Mine", 'such as "own_module:Mine"'),
        ("folder/methods.py:Mine", 'such as "methods:Mine"'),
        ("../evil:Mine", 'write "module:Class"'),
        ("own_package.methods:Mine:Mine", 'write "module:Class"'),
        ("__main__:Mine", "another process has another __main__"),
        ("own_package.methods.Mine", 'such as "own_package.methods:Mine"'),
        ("dgl:weight", r"dgl is a method of the shelf: .* dgl:KEY=VALUE"),
        ("own_packages:Mine", "No module named 'own_packages'.*PYTHONPATH"),
        ("own_modul:Mine", r"'own_modul'\. Did you mean 'own_module'\?"),
        ("nothing_like_it:Mine", r"'nothing_like_it'\. Install its package"),
        ("own_package.method:Mine", r"'own_package\.method'\. Did you mean 'own_package\.methods'"),
        ("own_package.broken:Mine", "ZeroDivisionError: division by zero"),
        ("own_package.torn:Mine", "SyntaxError"),
        ("own_package.leaves:Mine", "SystemExit"),
        ("own_package.methods:Main", "Did you mean 'Mine'"),
        ("own_package:Mine", r"unknown class of module 'own_package' 'Mine'\. Known: \(none\)"),
        ("own_package.methods:Other", "must be a subclass of ppll.methods.Method"),
        ("own_package.methods:function", "must be a subclass of ppll.methods.Method"),
        ("own_package.methods:Unfinished", r"Method with build_auxiliary\(\)"),
        ("own_package.methods:Positional", "missing 1 required .*'weight'.*keyword-only"),
        ("own_package.methods:Untyped", "NameError: name 'Sizes' is not defined"),
    ],
)
def test_what_is_no_method_is_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_own_method(name, {})


def test_a_module_in_the_working_folder_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(RecipeError, match=r"lies in this folder.*PYTHONPATH=\."):
        build_own_method("beside:Mine", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait": 1}, r"'method\.wait'\. Did you mean 'method\.weight'"),
        ({"weight": "much"}, r"method\.weight: .*number.*'much'"),
        ({"weight": -1}, "ValueError: weight must not be negative"),
        ({"auxiliary": "linear"}, r"unknown option.*'method\.auxiliary'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_own_method("own_package.methods:Mine", options)


def test_what_a_method_may_say_is_taken() -> None:
    says = {"fields": ("image",), "late_fields": ("any", "name"), "slow_from": "last", "lag": 1}
    method = build_own_method("own_package.methods:Reads", {"says": says})
    assert vars(method).items() >= says.items()
    build_own_method("own_package.methods:Reads", {"says": {"slow_from": None, "lag": 0}})


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"lag": 0}, r"slow_from needs a lag of 1 to 63, found lag = 0: .*`lag: int = 2`"),
        ({"lag": 64}, r"slow_from needs a lag of 1 to 63, found lag = 64"),
        ({"lag": 1.5}, r"slow_from needs a lag of 1 to 63, found lag = 1\.5"),
        ({"slow_from": "Last"}, r"slow_from = 'Last' must be one of 'last', 'next', None"),
        ({"fields": ("picture",)}, r"unknown name in fields 'picture'.*Known: image"),
        ({"fields": "image"}, r"fields = 'image' must be a tuple of names: write \('image',\)"),
        ({"late_fields": "logits"}, r"late_fields = 'logits' must be a tuple of names"),
        ({"late_fields": (3,)}, r"late_fields = \(3,\) must be a tuple of names"),
    ],
)
def test_what_no_method_can_say_is_refused(says: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^method 'own_package.methods:Reads': {message}"):
        build_own_method("own_package.methods:Reads", {"says": says})


@pytest.mark.parametrize("name", ["man", "lopt", "own_package.methods:Mine"])
def test_an_auxiliary_network_of_ones_own_comes_from_the_method(name: str) -> None:
    recipe = small_recipe(method=name).with_settings(["method.auxiliary=slow:Copy"])
    with pytest.raises(RecipeError, match=r"'slow:Copy'.* build_auxiliary"):
        build_method(recipe)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Without", r"build_auxiliary of own_package\.methods:Without returned None for block 0"),
        ("Failing", r"fails in what it builds for block 0: AttributeError: .*methods\.py, line \d"),
        ("Lazy", r"of block 0 has a LazyLinear.*site\.feature_shape"),
        ("Sharing", r"adds to block 0 holds 'stage1_1\..*' of the network itself.*copy\.deepcopy"),
    ],
)
def test_an_auxiliary_network_that_cannot_be_is_refused(name: str, message: str) -> None:
    recipe = small_recipe(method=f"own_package.methods:{name}")
    with pytest.raises(UsageError, match=message):
        ppll.Trainer(recipe).check()


@pytest.mark.parametrize("name", ["own_packages:Mine", "own_package.methods:Other"])
def test_the_command_line_ends_with_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["ppll", "train", "digits-resnet", f"--set=method.name={name}", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("RecipeError: ")
    assert not out.exists()

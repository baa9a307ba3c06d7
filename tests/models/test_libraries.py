"""Models of other libraries by name, and what is said where a library or a name is unknown."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.libraries import library

from ppll.cli.app import main
from ppll.errors import RecipeError
from ppll.models.libraries import LIBRARIES, build_of_library, check_of_library
from ppll.sections import MODEL_LIBRARIES, ModelConfig

IMAGE = (3, 32, 32)


def test_names_of_libraries_are_no_modules_of_one_s_own() -> None:
    assert tuple(LIBRARIES) == MODEL_LIBRARIES
    model = ModelConfig(name="timm:resnet18")
    assert (model.is_foreign, model.is_own) == (True, False)
    assert not ModelConfig(name="resnet32").is_foreign


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RecipeError, match=r"package timm is not installed: pip install timm"):
        check_of_library("timm:resnet18")


def test_a_torchvision_for_another_torch_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module") from error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RecipeError, match=r"built for another torch .*torchvision::nms.*install"):
        check_of_library("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "options", "shape", "match"),
    [
        ("timm:vit_tiny", {}, IMAGE, r"timm has no model 'vit_tiny'. Did you mean .*davit_tiny"),
        ("timm:resnet18", {"nothing": 1}, IMAGE, r"unexpected keyword argument 'nothing'"),
        ("timm:resnet18", {}, (64,), r"takes images"),
        ("torchvision:nothing_here", {}, IMAGE, r"torchvision says ValueError: Unknown model"),
        ("torchvision:vit_b_16", {}, (3, 30, 30), r"torchvision says"),
        ("transformers:nothing_here", {}, (8,), r"transformers says ValueError"),
        ("transformers:gpt2", {"nothing": 1}, (8,), r"model\.nothing is no option .*GPT2Config"),
        ("transformers:gpt2", {}, IMAGE, r"takes rows of tokens"),
    ],
)
def test_what_a_library_does_not_know_is_refused(
    name: str, options: dict[str, Any], shape: tuple[int, ...], match: str
) -> None:
    library(name.partition(":")[0])
    with pytest.raises(RecipeError, match=match):
        build_of_library(name, options, shape, 5, seed=0)


def test_the_data_fills_in_sizes() -> None:
    library("timm")
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
    model: Any = build_of_library("timm:vit_tiny_patch16_224", options, (1, 8, 8), 4, seed=0)
    assert model.patch_embed.proj.weight.shape == (16, 1, 4, 4)
    assert model.pos_embed.shape == (1, 5, 16)
    assert model.head.out_features == 4


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setenv("COLUMNS", "300")
    out = str(tmp_path / "run")
    settings = ["--set", "model.name=timm:resnet18", "--set", "data.name=synthetic"]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("")
    monkeypatch.setattr(sys, "argv", ["ppll", "train", str(recipe), "--out", out, *settings])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "package timm is not installed" in captured.err
    assert "Traceback" not in captured.err

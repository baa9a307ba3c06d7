"""What docs/training.md shows can be trained, and it names every key of its sections."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch

import ppll
from ppll.config import Recipe
from ppll.section import Section
from ppll.sections import LossConfig
from ppll.task_loss import build_task_loss
from ppll.update_sections import OptimizerConfig, ScheduleConfig

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_recipes(example: str) -> None:
    Recipe.from_dict(tomllib.loads(example))


@pytest.mark.parametrize("section", [LossConfig, OptimizerConfig, ScheduleConfig])
def test_every_key_is_named(section: type[Section]) -> None:
    named = set(re.findall(r"`(?:\w+\.)?(\w+)", PAGE))
    assert set(section.model_fields) <= named


def test_the_loss_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = (t for t in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "FocalLoss" in t)
    (tmp_path / "focal.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe.from_dict({"loss": {"name": "focal:FocalLoss", "options": {"gamma": 0}}})
    logits, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = build_task_loss(recipe, torch.device("cpu"))
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(loss(logits, targets), expected)
    ppll.Trainer({"data": {"name": "digits"}, "loss": {"name": "focal:FocalLoss"}})

"""What docs/training.md shows can be trained, and it names every key of its sections."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ppll.config import Recipe
from ppll.update_sections import OptimizerConfig, ScheduleConfig

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_recipes(example: str) -> None:
    Recipe.from_dict(tomllib.loads(example))


@pytest.mark.parametrize("section", [OptimizerConfig, ScheduleConfig])
def test_every_key_is_named(section: type[OptimizerConfig] | type[ScheduleConfig]) -> None:
    named = set(re.findall(r"`(?:\w+\.)?(\w+)", PAGE))
    assert set(section.model_fields) <= named

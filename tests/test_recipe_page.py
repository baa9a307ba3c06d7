"""The page of all keys is what the code says."""

from __future__ import annotations

import tomllib

from ppll.config import Recipe
from ppll.recipe_files import load_recipe
from tests.recipe_page import HEAD, PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it: python -m tests.recipe_page"


def test_every_key_is_on_it() -> None:
    text = page()
    for name, section in Recipe():
        part = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        keys = [key for key in type(section).model_fields if key != "blocks" or name == "split"]
        assert [key for key in keys if f"| `{key}` |" not in part] == []


def test_the_recipe_that_it_shows_can_be(tmp_path) -> None:
    text = HEAD.partition("```toml\n")[2].partition("```")[0]
    tomllib.loads(text)
    (tmp_path / "mine.toml").write_text(text)
    assert load_recipe(tmp_path / "mine.toml").optimizer.blocks[0].lr == 0.05

"""The pages of the methods: none is missing, and the index says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppll.auxiliary import auxiliaries
from ppll.methods import methods
from ppll.zoo import travels

FOLDER = Path(__file__).parents[2] / "docs/methods"
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMES = [entry.name for entry in methods]
PAGES = {"manpp": "man.md"}
"""Pages that are not called like the method."""


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table that begins with a heading, by the name in its first column."""
    _, _, table = INDEX.partition(f"\n| {heading} |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {re.findall(r"`([\w-]+)`", first)[0]: [first, *others] for first, *others in cells}


def test_the_index_names_every_method() -> None:
    assert sorted(rows("method")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_index_says_of_a_method_what_the_code_says(name: str) -> None:
    link, year, _, beside, auxiliary, resnet, vit = rows("method")[name]
    build = methods[name].build
    assert f"({PAGES.get(name, f'{name}.md')})" in link
    assert int(year) == build.paper.year
    assert (beside == "-") == (travels(methods.build(name, {})) == ["features", "targets"])
    if default := getattr(build, "default_auxiliary", None):
        assert f"`{default}`" in auxiliary
    assert (resnet, vit) == ("yes", "yes")  # tests/methods/test_contract.py trains on both.


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_page_that_says_what_travels(name: str) -> None:
    page = (FOLDER / PAGES.get(name, f"{name}.md")).read_text(encoding="utf-8")
    assert f"`{name}`" in page.partition("\n")[0]
    assert "**What travels.**" in page
    assert "**Published" in page
    missing = [option for option in methods[name].options if f"`{option}" not in page]
    assert missing == []


def test_the_index_lists_the_shelf_of_auxiliary_networks_with_its_options() -> None:
    listed = rows("`method.auxiliary`")
    for entry in auxiliaries:
        options = ", ".join(f"`{name} = {value}`" for name, value in entry.options.items())
        assert listed.pop(entry.name)[2].strip(" |") == options
    assert listed == {}


def test_every_link_leads_somewhere() -> None:
    for page in FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert (FOLDER / target).exists(), f"{page.name} links to {target}"

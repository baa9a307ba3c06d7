"""Packages that are not always there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ppll.extras import PACKAGES, pip_install

ROOT = Path(__file__).parents[1]


def test_the_versions_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        package
        for name in ("demo", "datasets", "pictures", "tensorboard")
        for package in extras[name]
    }
    assert wanted == {f"{name}{versions}" for name, versions in PACKAGES.items()}


def test_a_package_that_nobody_needs_is_not_installed() -> None:
    with pytest.raises(KeyError):
        pip_install("left-pad")


@pytest.mark.parametrize("folder", ["src", "docs", "examples"])
def test_nobody_is_told_to_install_from_an_index_that_does_not_have_it(folder: str) -> None:
    """PPLL is installed from a clone, so its extras are those of a folder."""
    pages = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".md", ".py", ".toml")]
    assert pages
    told = re.compile(r"pip install[^\n]*ppll\[")
    assert [page for page in [*pages, ROOT / "README.md"] if told.search(page.read_text())] == []

"""How to cite, and what the version is: the same everywhere."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import ppll

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert {"message", "title", "authors"} <= citation.keys()
    for key in ("version", "license"):
        assert citation[key] == PROJECT[key]
    [paper] = citation["references"]
    assert paper["url"].endswith("2411.12780")


def test_the_package_says_which_version_it_is() -> None:
    assert ppll.__version__ == metadata.version("ppll")

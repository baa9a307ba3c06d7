"""How `make docs` builds the pages: README, what lies here, and the benchmarks.

The order of the navigation is that of the tables in the index, so it is written down once.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

project = "PPLL"
author = "the authors of PPLL"
extensions = ["myst_parser"]
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/**.md"]
include_patterns += ["benchmarks/README.md", "examples/README.md"]
exclude_patterns = [".*", "build", "runs", "studies", "src", "tests"]
root_doc = "docs/README"
myst_heading_anchors = 4
html_theme = "alabaster"
html_theme_options = {"page_width": "70rem", "sidebar_width": "16rem", "fixed_sidebar": True}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_copy_source = False

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)")
_SHELVES = {"docs/methods/README"}


def _linked(page: str, text: str) -> list[str]:
    """The pages that a page names, in order, from the root and without ending."""
    names = [normpath(f"{page}/../{link}").removesuffix(".md") for link in _LINK.findall(text)]
    return [name for name in dict.fromkeys(names) if name != root_doc]


def _contents(page: str, text: str, caption: str = "") -> str:
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    entries = [f"/{name}" for name in _linked(page, text)]
    return "\n".join(["\n```{toctree}", *options, "", *entries, "```\n"])


def _add_contents(app: Any, page: str, source: list[str]) -> None:
    """Say which pages come next, to the pages that list others."""
    del app
    if page == root_doc:
        tables = re.split(r"^\| (to \w+) \| read \|$", source[0], flags=re.MULTILINE)
        parts = zip(tables[1::2], tables[2::2], strict=True)
        source[0] += "".join(_contents(page, text, caption) for caption, text in parts)
    elif page in _SHELVES:
        source[0] += _contents(page, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)

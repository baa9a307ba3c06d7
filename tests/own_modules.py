"""Modules of a user's own, which recipes name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def give_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str) -> None:
    """Let ``name`` be imported during a test, here and by the processes of a run; what is cached
    stays in the test's folder."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    # Set before it is deleted, so that what the test imports is taken away behind it.
    monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.delitem(sys.modules, name)

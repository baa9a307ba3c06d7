"""Every example runs as it stands, is short, and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "one_process": ["exit of block 3", "ppll report"],
    "your_own_model": ["on 2 stages: test accuracy", "is on ring 2"],
    "several_methods": ["backprop  1 blocks", "scpl", "methods.html"],
    "read_a_timeline": ["stage 1:", "bottleneck: stage", "timeline.json"],
    "resume_after_a_kill": ["unbroken:", "the same"],
    "early_exits": ["leave when 99% sure", "block 3: a "],
}


def test_every_example_is_tried() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


LONG = ("several_methods", "early_exits", "resume_after_a_kill")
"""Ten seconds each; the others show the same commands."""


@pytest.mark.parametrize("name", SAYS)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.processes
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SAYS]
)
def test_examples_run(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PPLL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in SAYS[name]:
        assert words in done.stdout

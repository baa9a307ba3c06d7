"""Every example runs as it stands, is short, and says what it should."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import ppll

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
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the main module, which the processes of a run import; twenty steps show enough."""
    if name not in LONG:
        whole = ppll.load_recipe
        steps = "train.max_steps=20"
        monkeypatch.setattr(ppll, "load_recipe", lambda n, settings: whole(n, [*settings, steps]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    path = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path])
    runpy.run_path(path, run_name="__main__")
    printed = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in printed

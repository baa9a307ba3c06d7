"""What several processes need of the script that trains."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from ppll.errors import UsageError
from ppll.launching.script import check_script
from ppll.trainer import Trainer


class Own(nn.Module):
    pass


def run_as(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    main = ModuleType("__main__")
    if file is not None:
        main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)


def test_a_script_from_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, "<stdin>")
    with pytest.raises(UsageError, match=r"from standard input .*: put it in a file, or set run"):
        check_script(None)


def test_replicas_are_several_processes_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_as(monkeypatch, "<stdin>")
    recipe = {"data": {"batch_size": 32}, "train": {"replicas": 2}}
    alone = r"or set runtime\.stages = 1 and train\.replicas = 1 \("
    with pytest.raises(UsageError, match=alone):
        Trainer(recipe, out=tmp_path / "run")


def test_a_class_that_no_other_process_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, None)
    check_script(nn.Sequential(nn.Linear(1, 1), Own()))
    monkeypatch.setattr(Own, "__module__", "__main__")
    with pytest.raises(UsageError, match="class Own is known to this process only"):
        check_script(nn.Sequential(nn.Linear(1, 1), Own()))


def test_a_file_may_have_classes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, __file__)
    monkeypatch.setattr(Own, "__module__", "__main__")
    check_script(Own())


TRAINS = """
import sys
from ppll.launching.script import check_script
sys.modules["__main__"].__dict__ is globals() or sys.exit("another __main__")
"""


@pytest.mark.parametrize(
    "lines",
    [
        "check_script(None)",
        "check_script(\n    None\n)",
        "for _ in range(2):\n    check_script(None)",
    ],
)
def test_a_script_that_trains_where_it_is_imported_is_refused(lines: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINS + lines)
    message = (
        r"import \S*train\.py, and its line \d+ would .* below `if __name__ == \"__main__\":`, or"
    )
    with pytest.raises(UsageError, match=message):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(
    "lines",
    [
        'if __name__ == "__main__":\n    check_script(None)',
        'def main():\n    check_script(None)\nif __name__ == "__main__":\n    main()',
        'with open(__file__):\n    if __name__ == "__main__":\n        check_script(None)',
        '__name__ == "__main__" and check_script(None)',
        'check_script(None) if __name__ == "__main__" else None',
    ],
)
def test_a_script_that_tells_an_import_from_itself_may_train(lines: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINS + lines)
    runpy.run_path(str(script), run_name="__main__")


def test_the_script_of_a_package_is_not_imported_and_may_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "trains_at_once"
    package.mkdir()
    (package / "__main__.py").write_text(TRAINS + "check_script(None)")
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_module("trains_at_once", run_name="__main__", alter_sys=True)

"""The script that trains: every process of a run imports it, where there are several."""

from __future__ import annotations

import ast
import linecache
import multiprocessing
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from torch import nn

from ppll.errors import UsageError

__all__ = ["GUARD", "check_script", "refuse_import"]

GUARD: Final = '`if __name__ == "__main__":`'
_CHOICES: Final = (ast.If, ast.IfExp, ast.BoolOp, ast.Match, ast.Try, ast.TryStar, ast.While)
"""What an import may go through another way than the script itself."""
_ALONE: Final = "or set runtime.stages = 1 and train.replicas = 1 (and leave max_restarts at 0)."


def refuse_import() -> None:
    """Refuse a run in a process that a run has started and that imports the caller's script.

    Raises:
        SystemExit: This is such a process. Those of stages end by it without a traceback each; the
            launcher says why.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "a process imports the script that trains, and found a run in it: put what trains "
            f"below {GUARD}."
        )


def check_script(network: nn.Module | None) -> None:
    """Refuse a run of several processes whose script they cannot import.

    Args:
        network: The user's own, which the processes build anew.

    Raises:
        UsageError: The script comes from standard input, or there is none (``python -c``, a
            prompt, a notebook) and it has classes of its own, or to import it is to train.
    """
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is not None and not Path(script).exists():
        raise UsageError(
            "a script from standard input cannot be imported by the processes of a run: "
            f"put it in a file, {_ALONE}"
        )
    own = [
        type(m).__qualname__
        for m in (network.modules() if network else ())
        if type(m).__module__ == "__main__"
    ]
    if script is None and own:
        raise UsageError(
            f"the network's class {own[0]} is known to this process only, not to those of the "
            f"run: put it in a module that can be imported, {_ALONE}"
        )
    if script is not None and (line := _line_that_trains(main)) is not None:
        raise UsageError(
            f"the processes of a run import {script}, and its line {line} would "
            f"start a run in each of them: put what trains below {GUARD}, {_ALONE}"
        )


def _line_that_trains(main: ModuleType) -> int | None:
    """The line of the script that is at work, where whoever imports it comes there for certain."""
    if getattr(getattr(main, "__spec__", None), "name", "").endswith("__main__"):
        return None  # That of a package is not imported.
    for frame, line in traceback.walk_stack(sys._getframe()):
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            source = "".join(linecache.getlines(frame.f_code.co_filename))
            return line if _is_certain(line, ast.parse(source)) else None
    return None


def _is_certain(line: int, script: ast.Module) -> bool:
    """Whether a line belongs to a statement at the top of a script that leaves no choice."""
    return any(
        statement.lineno <= line <= (statement.end_lineno or line)
        and not any(isinstance(node, _CHOICES) for node in ast.walk(statement))
        for statement in script.body
    )

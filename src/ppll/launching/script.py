"""The script that trains: every process of a run imports it, where there are several."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

from torch import nn

from ppll.errors import UsageError

__all__ = ["check_script", "refuse_import"]

_ALONE = "or set runtime.stages = 1 and train.replicas = 1 (and leave max_restarts at 0)."


def refuse_import() -> None:
    """Refuse a run in a process that a run has started and that imports the caller's script.

    Raises:
        SystemExit: This is such a process. Those of stages end by it without a traceback each; the
            launcher says why.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(
            "a process imports the script that trains, and found a run in it: put what trains "
            'below `if __name__ == "__main__":`.'
        )


def check_script(network: nn.Module | None) -> None:
    """Refuse a run of several processes whose script they cannot import.

    Args:
        network: The user's own, which the processes build anew.

    Raises:
        UsageError: The script comes from standard input, or there is none (``python -c``, a
            prompt, a notebook) and it has classes of its own.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
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

"""What this machine can do for a run, and how to mend what it cannot.

Every check tries the thing itself, the way a run does it: a version number or a mount point says
little about what a container lets through. A check leaves nothing behind and cannot hang.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ppll import trials
from ppll.trials import State, Verdict

__all__ = ["CHECKS", "Check", "Finding", "conclude", "examine"]

_PATIENCE_S: Final = 60.0


@dataclass(frozen=True)
class Finding:
    """What one check came to.

    Args:
        name: What was tried.
        state: ``problem``: runs fail; ``warning``: some do, or are slower than need be.
        found: What the machine did.
        advice: How to mend it; empty where there is nothing to mend.
    """

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that runs need.

    Args:
        name: What it is.
        run: Tries it; whatever it raises means that this machine cannot do it.
        advice: How to mend that.
        otherwise: How bad that is.
    """

    name: str
    run: Callable[[], Verdict]
    advice: str
    otherwise: State = "problem"

    def examine(self) -> Finding:
        """Try it; neither an exception nor a machine that never answers gets past here."""
        findings: list[Finding] = []
        thread = threading.Thread(target=lambda: findings.append(self._try()), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # not one more thread is to be had; most trials can do without
            return self._try()
        thread.join(_PATIENCE_S)
        silent = Finding(self.name, self.otherwise, f"no answer in {_PATIENCE_S:g} s", self.advice)
        return findings[0] if findings else silent

    def _try(self) -> Finding:
        try:
            found, state, advice = self.run()
        except BaseException as error:  # a check may not end the others, whatever happens in it
            text = f"{type(error).__name__}: {error}"
            return Finding(self.name, self.otherwise, text, self.advice)
        return Finding(self.name, state, found, advice)


CHECKS: Final = (
    Check("torch", trials.torch_works, "install Python 3.11 or newer: pip install 'torch>=2.10'."),
    Check("extras", trials.extras_import, "install them again with pip.", "warning"),
    Check("processors", trials.processors_are_free, "report it with ppll env.", "warning"),
    Check("gpus", trials.gpus_are_seen, "mend the driver, or hide the GPUs from PPLL.", "warning"),
    Check(
        "shared memory",
        trials.memory_is_shared,
        "end other programs or give the container more memory; lower runtime.capacity or "
        "data.batch_size.",
    ),
    Check(
        "unix sockets",
        trials.sockets_meet,
        "set TMPDIR to a short folder of your own on a local disk, as in TMPDIR=/tmp.",
    ),
    Check(
        "loopback",
        trials.loopback_answers,
        "one host needs no port and can train; torchrun and runs over several hosts need the "
        "loopback interface up (ip link set lo up) and a port of the ephemeral range free.",
        "warning",
    ),
    Check(
        "fork server",
        trials.processes_start,
        "let this user start more processes (ulimit -u, the container's pids limit); check TMPDIR. "
        "Until then: --stages 1.",
    ),
    Check("open files", trials.files_open, "raise the limit: ulimit -n 4096."),
    Check("threads", trials.threads_start, "raise the limits: ulimit -u, the container's pids."),
    Check(
        "disk of runs",
        trials.run_folder_is_writable,
        "work in a folder that can be written to and has room, or name one with --out.",
    ),
    Check(
        "disk of temporary files",
        trials.temporary_folder_is_writable,
        "set TMPDIR to a folder that can be written to and has room.",
    ),
)
"""All that ``ppll doctor`` tries, in this order."""


def examine() -> list[Finding]:
    """Try everything that runs need, one after the other; takes a few seconds."""
    return [check.examine() for check in CHECKS]


def conclude(findings: Sequence[Finding]) -> str:
    """What all findings mean, in one line."""
    counts = {state: sum(f.state == state for f in findings) for state in ("problem", "warning")}
    if counts["problem"]:
        return f"{counts['problem']} to mend before runs can work: see problem above."
    if counts["warning"]:
        return f"Runs work here; {counts['warning']} to know of: see warning above."
    return "Runs work here."

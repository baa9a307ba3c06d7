"""The fault matrix: which rank fails, when, and how.

Every case must name the first cause in time, leave nothing behind, and resume to the bits of a run
that was never broken. ``tests/test_faults.py`` runs a part of it; all of it is one command::

    python -m tests.faults
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ppll
from ppll import fork_server
from ppll.config import Recipe
from ppll.errors import WorkerError
from ppll.testing import FAULT_VARIABLE, Fault

How = Literal["raise", "exit", "kill", "stop"]

RANKS = {"first": 0, "middle": 2, "last": 3}
STEPS = {"FORWARD": 5, "SEND": 5, "RECEIVE": 5, "LEARN": 5, "SAVE": 6, "WRITE": 6, "EVALUATE": 4}
DOING = {
    "FORWARD": "in the forward",
    "SEND": "while it sent features",
    "RECEIVE": "while it waited for a message",
    "LEARN": "in the learning step",
    "SAVE": "while it saved a checkpoint",
    "EVALUATE": "while it evaluated",
}
CAUSES = {
    "raise": "InjectedFault: asked for",
    "exit": "the process exited with code 3",
    "kill": "the process was killed by SIGKILL",
    "stop": "no progress for 1 s",
}
STALL_TIMEOUT_S = 1.0
LIMIT_S = 2.0


@dataclass(frozen=True)
class Case:
    """One failure.

    Attributes:
        where: ``"first"``, ``"middle"`` or ``"last"`` of four ranks.
        when: What the rank does, or its thread that writes (``"WRITE"``).
        how: An error, ``os._exit``, SIGKILL or SIGSTOP.
    """

    where: str
    when: str
    how: How

    def __str__(self) -> str:
        return f"{self.where}-{self.when}-{self.how}"

    def fault(self, stamp: Path) -> Fault:
        return Fault(
            RANKS[self.where], STEPS[self.when], self.when, self.how, stamp=os.fspath(stamp)
        )


MATRIX = [
    Case(where, when, how)
    for where, when, how in itertools.product(RANKS, STEPS, get_args(How))
    if (where, when) != ("last", "SEND")
]


def recipe(**runtime: Any) -> Recipe:
    """Four blocks, three epochs of four steps, a checkpoint after every third."""
    return Recipe.from_dict(
        {
            "data": {
                "name": "synthetic",
                "shape": [1, 8, 8],
                "num_classes": 3,
                "num_train": 45,
                "num_test": 10,
                "batch_size": 10,
                "validation": 7,
                "crop": 1,
            },
            "model": {"name": "resnet", "depth": 14, "width": 8},
            "optimizer": {"lr": 0.05},
            "train": {"epochs": 3, "seed": 5},
            # Long enough for a busy machine; who wants a stall asks for less.
            "runtime": {"stall_timeout_s": 60.0, **runtime},
            "checkpoint": {"every_steps": 3, "keep": 2},
        }
    )


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Let ranks that are started meanwhile carry the failure out."""
    os.environ.update(fault.to_environment())
    try:
        yield
    finally:
        del os.environ[FAULT_VARIABLE]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if processes, shared memory, temporary folders or sockets are left afterwards."""
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="t", dir=usual) as folder:
        before = _shared_names()
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = None
        deadline = time.monotonic() + 1.0
        while _ranks() and time.monotonic() < deadline:
            time.sleep(0.01)  # The kernel may still be ending them.
        gc.collect()  # The elastic agent's semaphores go with it.
        assert not _ranks(), f"processes left behind: {_ranks()}"
        new = [name for name in _shared_names() - before if not _is_of_others(name)]
        assert not new, f"left behind in /dev/shm: {new}"
        assert not os.listdir(folder), f"files left behind: {os.listdir(folder)}"


def _shared_names() -> set[str]:
    """What lies in shared memory; joblib's semaphores are none of ours, whoever made them."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky-")}


def _is_of_others(name: str) -> bool:
    """Whether another process of the machine than this one uses it, or had it a moment ago.

    By its number: a semaphore is mapped under another name before it has its own.
    """
    file = Path("/dev/shm", name)
    try:
        number = file.stat().st_ino
    except OSError:
        return True
    used = re.compile(rf" {number} +/dev/shm/")
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if maps.parent.name != str(os.getpid()) and used.search(maps.read_text()):
                return True
    return not file.exists()


def _ranks() -> list[int]:
    """Processes that the fork server of this one has forked and that are no zombies."""
    processes = dict(filter(None, map(_parent, Path("/proc").glob("[0-9]*"))))
    servers = {pid for pid, parent in processes.items() if parent == os.getpid()}
    return sorted(pid for pid, parent in processes.items() if parent in servers)


def _parent(process: Path) -> tuple[int, int] | None:
    try:
        state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else (int(process.name), int(parent))


def unbroken_hash(folder: Path) -> str:
    """What every case must come to in the end."""
    return ppll.Trainer(recipe(), out=folder / "unbroken").fit().weights_sha256


def check(case: Case, out: Path, expected_hash: str, resumed_stages: int) -> float:
    """Run a case, look at how it ended, and resume it.

    Returns:
        Seconds from the failure to the report; of a hang, those beyond its time-out.
    """
    stamp = out.with_suffix(".stamp")
    with nothing_left_behind(), injected(case.fault(stamp)):
        try:
            timeout = {"stall_timeout_s": STALL_TIMEOUT_S} if case.how == "stop" else {}
            ppll.Trainer(recipe(stages=4, **timeout), out=out).fit()
        except WorkerError as error:
            late_s = time.monotonic() - float(stamp.read_text())
            late_s -= STALL_TIMEOUT_S if case.how == "stop" else 0
            message = str(error)
        else:
            raise AssertionError("the run did not fail")
    _check_message(case, message)
    assert late_s < LIMIT_S, f"reported {late_s:.2f} s after the failure"
    resumed = ppll.Trainer(recipe(stages=resumed_stages), out=out, resume=True).fit()
    assert resumed.weights_sha256 == expected_hash, "other weights than an unbroken run"
    return late_s


def _check_message(case: Case, message: str) -> None:
    rank = RANKS[case.where]
    head = message.partition("\n")[0]
    assert head.startswith(f"rank {rank} (stage {rank}"), head
    assert CAUSES[case.how] in head, head
    assert message.count(" failed at step ") == 1, message
    if case.when != "WRITE":  # That thread's failure is met wherever the rank is by then.
        assert f"failed at step {STEPS[case.when]}, {DOING[case.when]}" in head, head


def main() -> int:
    """Run the whole matrix and print a line a case; the number of cases that do not hold."""
    fork_server.warm_up()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="ppll-faults-") as name:
        folder = Path(name)
        expected_hash = unbroken_hash(folder)
        for index, case in enumerate(MATRIX):
            try:
                late_s = check(case, folder / str(case), expected_hash, (1, 2, 4)[index % 3])
                print(
                    f"{case}: reported after {late_s:.2f} s, resumed to the same bits", flush=True
                )
            except Exception:
                bad += 1
                print(f"{case}: DOES NOT HOLD\n{traceback.format_exc()}", flush=True)
    print(f"{len(MATRIX) - bad} of {len(MATRIX)} cases hold")
    return bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppll import fork_server


@pytest.fixture(scope="session")
def running_fork_server() -> None:
    """It and torch's compiler keep a folder of their own for as long as this process lives.

    It has imported everything when the first process is there, so no time-out counts that.
    """
    fork_server.warm_up()
    importlib.import_module("torch._dynamo")
    first = multiprocessing.get_context(fork_server.START_METHOD).Process(target=int)
    first.start()
    first.join()
    first.close()


@pytest.fixture
def nothing_left_behind(
    running_fork_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.glob("*")) == []
    folder.rmdir()
    assert multiprocessing.active_children() == []


def descendants(pid: int) -> set[int]:
    """The children of a process, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ppll import fork_server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path, in which a test must leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="ppll-"))
    yield folder
    folder.rmdir()


@pytest.fixture
def paths(folder: Path) -> Iterator[Path]:
    """Names for sockets, as many as a test asks for."""
    return (folder / str(number) for number in itertools.count())


Start = Callable[..., BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a function in a process that has imported torch already."""
    fork_server.warm_up()  # Ranks of later tests come from it, too.
    context = multiprocessing.get_context(fork_server.START_METHOD)
    started: list[BaseProcess] = []

    def start(function: Callable[..., None], *args: object) -> BaseProcess:
        process = context.Process(target=function, args=args, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
        process.close()

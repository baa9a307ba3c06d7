"""What a rank says to the launcher: taken as it is meant, or the run ends and names the rank."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppll import fork_server
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import ProtocolError, WorkerError
from ppll.interrupts import Interrupts, Wish
from ppll.job import Job, RankResult
from ppll.launching import launch
from ppll.launching.failure import Failure
from ppll.launching.lifeline import LauncherEnd
from ppll.metrics import Tally
from ppll.run_folder import RunFolder
from ppll.status import Activity

from . import WEIRD, fuzz, mutated_bytes, mutated_tree

FAILURE = Failure(1, 2, 3, Activity.LEARN, 4.5, "RuntimeError: no", "Traceback ...", True)
RESULT = RankResult(
    step=3,
    samples=30,
    started_s=1.5,
    seconds=2.5,
    evaluation_s=0.5,
    busy_fraction=0.75,
    peak_memory_bytes=2**30,
    training_peak_bytes=2**29,
    exits={"test": {0: Tally(8, 1.0, 0.5), 1: Tally(8, 2.0, 0.25)}},
    digests=("a.weight float32 [2] 00",),
)
PID = os.getpid()
MESSAGES: list[dict[str, Any]] = [
    {"hello": 1, "pid": PID},
    {"failure": dataclasses.asdict(FAILURE)},
    {"result": json.loads(json.dumps(dataclasses.asdict(RESULT)))},
    {"aftermath": dataclasses.asdict(FAILURE)},
]
LINES = [json.dumps(message).encode() + b"\n" for message in MESSAGES]


@contextmanager
def line() -> Iterator[tuple[LauncherEnd, socket.socket]]:
    """The launcher's end of the line to rank 1, and what is at the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield LauncherEnd(ours, 1), theirs


def said(*chunks: bytes) -> LauncherEnd:
    """What the launcher has understood, after the other end has hung up.

    Raises:
        ProtocolError: It is not what a rank says.
    """
    with line() as (end, rank):
        for chunk in chunks:
            rank.sendall(chunk)
            assert end.receive()
        rank.close()
        while end.receive():
            pass
    return end


def check(*chunks: bytes) -> None:
    with suppress(ProtocolError):
        end = said(*filter(None, chunks))
        # The launcher kills who it is told; 0 and below are groups of processes.
        assert (end.rank, end.pid) == (-1, -1) or (end.rank == 1 and 1 < end.pid < 2**31)
        if end.failure is not None:
            assert end.failure.message()
            assert end.failure.repeats(end.failure) == end.failure.is_exception
        assert end.result is None or isinstance(end.result, RankResult)
        assert end.aftermath is None or end.aftermath.message()


def test_what_a_rank_says_is_understood() -> None:
    end = said(*LINES)
    assert (end.rank, end.pid) == (1, PID)
    assert (end.failure, end.result, end.aftermath) == (FAILURE, RESULT, FAILURE)


@fuzz(75)
@given(st.lists(st.integers(1, 400), max_size=8))
def test_it_does_not_matter_how_words_are_cut(cuts: list[int]) -> None:
    stream, chunks = b"".join(LINES), []
    for cut in cuts:
        chunks.append(stream[:cut])
        stream = stream[cut:]
    end = said(*filter(None, [*chunks, stream]))
    assert (end.rank, end.failure, end.result) == (1, FAILURE, RESULT)


@fuzz(250)
@given(st.sampled_from(MESSAGES).flatmap(lambda m: mutated_tree(m, [*WEIRD, PID, "1", 77])))
@example({"hello": 1, "pid": -1})
@example({"hello": 1, "pid": 0})
@example({"hello": 1, "pid": 1})
@example({"hello": math.inf, "pid": PID})
@example({"hello": 10**6, "pid": PID})
@example({"hello": 0, "pid": PID})
def test_a_mutated_message_is_understood_or_refused(message: dict[str, Any]) -> None:
    check(json.dumps(message).encode() + b"\n")


@fuzz(100)
@given(mutated_bytes(b"".join(LINES)), st.integers(1, 2000))
def test_mutated_words_are_understood_or_refused(stream: bytes, cut: int) -> None:
    check(stream[:cut], stream[cut:])


@fuzz(75)
@given(st.lists(st.binary(max_size=40) | st.sampled_from(LINES), max_size=5).map(b"\n".join))
@example(b"[" * 60_000 + b"\n")
@example(b'{"failure":' * 6_000 + b"\n")
@example(b'{"hello":1,"pid":' + b"9" * 60_000 + b"}\n")
@example(b"\n\n\n")
def test_noise_is_refused(stream: bytes) -> None:
    check(stream)


@pytest.mark.parametrize(
    "words",
    [LINES[0] * 2, b'{"hello": 0, "pid": 9999}\n', b'{"hello": 2, "pid": 9999}\n'],
    ids=["twice", "another", "no such rank"],
)
def test_a_line_has_one_rank(words: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected one hello of rank 1"):
        said(words)


def test_words_without_an_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppll.launching.lifeline._MAX_BYTES", 100_000)
    with pytest.raises(ProtocolError, match="rank 1 sent over 100000 bytes without an end"):
        said(b"x" * 60_000, b"x" * 60_000)


def test_a_rank_that_is_gone_before_it_is_welcomed_is_no_error() -> None:
    from ppll.status import StatusPage

    page = StatusPage()
    with line() as (end, rank):
        rank.sendall(LINES[0])
        rank.close()
        assert end.receive()
        end.welcome(page)
        end.ask_to_end(Wish.SAVE)
        assert not end.receive()
    page.close()


# The launcher, with ranks that speak to it and do nothing else

SPEAK = """
import os, socket, sys, time
path, secret, words = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
words = words.replace(b"PID", str(os.getpid()).encode())
line = socket.socket(socket.AF_UNIX)
while line.connect_ex(path):
    time.sleep(0.01)
line.sendall(secret + words)
while line.recv(100):
    pass
"""


class Speakers:
    """Takes the agent's place; its ranks say what they are told and wait until the line ends."""

    words: tuple[bytes, ...] = ()
    error = None

    def __init__(self, _: object, args: tuple[Job], num_ranks: int, folder: Path) -> None:
        self._commands = [
            [
                sys.executable,
                "-c",
                SPEAK,
                f"{folder}/launcher-{rank}",
                args[0].secret.hex(),
                w.hex(),
            ]
            for rank, w in enumerate(self.words[:num_ranks])
        ]
        self._ranks: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._ranks = [subprocess.Popen(command) for command in self._commands]

    def is_running(self) -> bool:
        return any(rank.poll() is None for rank in self._ranks)

    def ended_ranks(self) -> list[int]:
        return [index for index, rank in enumerate(self._ranks) if rank.poll() is not None]

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def exit_codes(self) -> dict[int, int]:
        return {index: self._ranks[index].wait() for index in self.ended_ranks()}


HELLO = b'{"hello": 0, "pid": PID}\n'
OTHER_HELLO = HELLO.replace(b"0", b"1", 1)


@pytest.mark.processes
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "words",
    [
        b"not JSON\n",
        HELLO + b"[" * 5000 + b"\n",
        HELLO + b'{"result": {}}\n',
        OTHER_HELLO,
        HELLO + HELLO,
        b'{"hello": 0, "pid": 1e999}\n',
    ],
    ids=["noise", "deep", "no result", "another rank", "twice", "infinite"],
)
def test_a_rank_out_of_its_mind_ends_the_run_by_name(
    words: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speakers, "words", (words, OTHER_HELLO))
    monkeypatch.setattr(launch, "Agent", Speakers)
    monkeypatch.setattr(fork_server, "warm_up", lambda: None)
    recipe = Recipe.from_dict({"runtime": {"stages": 2}})
    job = Job(recipe, RunFolder(tmp_path), DataFacts((1, 8, 8), 3, 4), (), 2)
    launcher = launch.Launcher(job, Interrupts())
    with pytest.raises(
        WorkerError, match=r"rank 0 \(stage 0\) failed .*ProtocolError: rank 0 sent"
    ):
        launcher.run()
    assert not launcher._folder.exists()
    launcher_done_s = time.monotonic()
    assert launcher_done_s - launcher._failures[0].time_s < 2

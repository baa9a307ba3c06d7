"""Who is to blame when nobody moves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ppll.launching import stall
from ppll.launching.stall import Pauses, describe, find_stall, is_stopped, request_stacks
from ppll.mesh import Mesh
from ppll.status import Activity, Status

NOW_S = 1000.0
TIMEOUT_S = 10.0


def ranks(*states: tuple[str, float]) -> list[Status]:
    """One status a rank, of an activity's name and the seconds it has lasted."""
    return [
        Status(Activity[name], NOW_S - lasts_s, -1, 7, 0, 0, 1, 2, 0.0, 0.0)
        for name, lasts_s in states
    ]


@pytest.mark.parametrize(
    ("states", "cause"),
    [
        ([("LEARN", 9), ("RECEIVE", 99)], None),
        ([("LEARN", 11), ("RECEIVE", 99)], 0),
        ([("SEND_WAIT", 99), ("LEARN", 11)], 1),
        ([("LEARN", 12), ("FORWARD", 13)], 1),
        ([("RECEIVE", 11), ("RECEIVE", 9)], None),
        ([("RECEIVE", 12), ("RECEIVE", 11)], 0),
        ([("SEND_WAIT", 20), ("RECEIVE", 15), ("RECEIVE", 30)], 1),
        ([("FINISH", 11), ("FINISH", 9)], 0),
        ([("START", 100), ("RECEIVE", 99)], None),
        ([("START", 121), ("RECEIVE", 99)], 0),
    ],
)
def test_the_cause_of_a_stall(states, cause) -> None:
    assert find_stall(ranks(*states), Mesh.of(len(states)), NOW_S, TIMEOUT_S) == cause


def test_behind_a_full_channel_is_who_shares_samples_with_the_sender() -> None:
    mesh = Mesh((1, 2, 1))  # Ranks 0, 1 and 2 are the stages' first replicas, 3 is stage 1's other.
    statuses = ranks(("SEND_WAIT", 30), ("RECEIVE", 12), ("RECEIVE", 20), ("RECEIVE", 15))
    assert find_stall(statuses, mesh, NOW_S, TIMEOUT_S) == 3
    later = ranks(("RECEIVE", 30), ("RECEIVE", 12), ("RECEIVE", 11), ("SEND_WAIT", 15))
    assert find_stall(later, mesh, NOW_S, TIMEOUT_S) == 2


def test_a_rank_that_has_said_what_it_came_to_is_through() -> None:
    statuses = ranks(("FINISH", 99), ("LEARN", 11))
    assert find_stall(statuses, Mesh.of(len(statuses)), NOW_S, TIMEOUT_S, through={0}) == 1
    assert find_stall(statuses, Mesh.of(len(statuses)), NOW_S, TIMEOUT_S, through={0, 1}) is None


def test_a_pause_of_all_is_nobodys_delay() -> None:
    statuses = ranks(("LEARN", 99), ("RECEIVE", 99))
    assert (
        find_stall(statuses, Mesh.of(len(statuses)), NOW_S, TIMEOUT_S, resumed_s=NOW_S - 9) is None
    )
    assert find_stall(statuses, Mesh.of(len(statuses)), NOW_S, TIMEOUT_S, resumed_s=NOW_S - 11) == 0
    assert find_stall(ranks(("LEARN", 11)), Mesh.of(1), NOW_S, TIMEOUT_S, resumed_s=NOW_S - 99) == 0


def test_a_long_turn_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.2, 101.0, 151.0])
    monkeypatch.setattr(stall.time, "monotonic", lambda: next(clock))
    pauses = Pauses()
    with pauses.noticed():
        pass
    assert pauses.resumed_s < 0
    with pauses.noticed():
        pass
    assert pauses.resumed_s == 151


def test_a_stopped_rank_is_to_blame_while_all_wait() -> None:
    statuses = ranks(("SEND_WAIT", 20), ("RECEIVE", 15), ("RECEIVE", 30))
    assert (
        find_stall(
            statuses, Mesh.of(len(statuses)), NOW_S, TIMEOUT_S, stopped=lambda rank: rank == 2
        )
        == 2
    )


def test_every_rank_is_described() -> None:
    lines = describe(ranks(("SEND_WAIT", 1.25), ("LEARN", 3)), NOW_S).splitlines()
    assert lines == [
        "  rank 0: send_wait for 1.2 s at step 7, 1 message(s) in its inbox, 2 in its outbox",
        "  rank 1: learn for 3.0 s at step 7, 1 message(s) in its inbox, 2 in its outbox",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stopped_process_is_seen_and_not_asked(tmp_path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        try:
            assert not is_stopped(process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert is_stopped(process.pid)
            stacks = request_stacks(process.pid, tmp_path / "stacks", signal.SIGUSR1)
            assert "is stopped" in stacks
        finally:
            process.kill()
    assert not is_stopped(process.pid)


def test_a_rank_without_stacks_has_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.kill", lambda *_: None)
    assert request_stacks(os.getpid(), tmp_path / "stacks", signal.SIGUSR1) == ""
    (tmp_path / "stacks").write_text("Thread 1\n")
    assert request_stacks(os.getpid(), tmp_path / "stacks", signal.SIGUSR1) == "Thread 1\n"

"""Many short channels, and the death of either end, between two processes on a processor.

``tests/gpu`` runs the same on a GPU.
"""

from __future__ import annotations

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.channels import rounds
from tests.channels.conftest import Start
from tests.channels.peers import End


def expect_done(process: BaseProcess, log: Path, timeout_s: float) -> None:
    process.join(timeout_s)
    said = log.read_text(encoding="utf-8") if log.exists() else "nothing; it hangs, or died"
    assert (process.exitcode, said) == (0, "done"), f"exit code {process.exitcode}: {said}"


def run_rounds(
    start: Start, folder: Path, logs: Path, num_rounds: int, devices: tuple[str, str]
) -> None:
    """Rounds from one device to another, or the same."""
    sides = {"sender": rounds.send_rounds, "receiver": rounds.receive_rounds}
    processes = {
        name: start(rounds.told, logs / name, side, folder, num_rounds, device)
        for (name, side), device in zip(sides.items(), devices, strict=True)
    }
    for name in ("receiver", "sender"):
        expect_done(processes[name], logs / name, 60)


def see_death(start: Start, path: Path, logs: Path, victim: str, end: End, device: str) -> None:
    dies, lives = {
        "sender": (rounds.send_and_end, rounds.outlive_the_sender),
        "receiver": (rounds.receive_and_end, rounds.outlive_the_receiver),
    }[victim]
    survivor = start(rounds.told, logs / "survivor", lives, path, device, logs / "may-die")
    dying = start(rounds.told, logs / "victim", dies, path, device, end, logs / "ready")
    if end == "wait":
        wait_for(logs / "ready", logs / "may-die", unless=logs / "victim")
        dying.kill()
    expect_done(survivor, logs / "survivor", rounds.PATIENCE_S / 2)


def wait_for(*files: Path, unless: Path) -> None:
    deadline = time.monotonic() + rounds.PATIENCE_S
    while not all(file.exists() for file in files):
        assert not unless.exists(), unless.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, f"none of {files} came in time"
        time.sleep(0.01)


@pytest.mark.processes
def test_thirty_rounds(start: Start, folder: Path, tmp_path: Path) -> None:
    run_rounds(start, folder, tmp_path, 30, ("cpu", "cpu"))


@pytest.mark.processes
@pytest.mark.parametrize("victim", ["sender", "receiver"])
@pytest.mark.parametrize("end", ["exit", "wait"], ids=["os._exit", "SIGKILL"])
def test_death_of_either_end_is_seen(
    start: Start, folder: Path, tmp_path: Path, victim: str, end: End
) -> None:
    see_death(start, folder / "socket", tmp_path, victim, end, "cpu")

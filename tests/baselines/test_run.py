"""Emulated devices in real processes, and the first cause of every failure."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ppll.baselines import SYSTEMS, EmulatedWork, run_baseline
from ppll.baselines.run import BaselineResult
from ppll.errors import WorkerError
from ppll.testing import FAULT_VARIABLE, Fault
from tests.baselines.conftest import descendants, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("nothing_left_behind")]

PAYLOAD = 1 << 18


def emulate(system: str, *, timeout_s: float = 60.0, num_batches: int = 4) -> BaselineResult:
    is_pipeline = SYSTEMS[system].kind == "pipeline"
    num_ranks = 1 if system == "backprop" else 2
    work = EmulatedWork.even(
        num_ranks * SYSTEMS[system].chunks_per_rank if is_pipeline else 2,
        forward_s=0.04,
        backward_s=0.08,
        payload_bytes=PAYLOAD,
        parameter_bytes=PAYLOAD,
    )
    return run_baseline(
        system,
        work,
        num_ranks=num_ranks,
        num_microbatches=4 if is_pipeline else 1,
        num_batches=num_batches,
        warm_up=1,
        timeout_s=timeout_s,
    )


EMULATED = [
    ("backprop", 0.12, [0]),
    ("ddp", 0.06, [PAYLOAD] * 2),
    ("1f1b", 0.075, [PAYLOAD] * 2),
    ("zero-bubble", 0.06 + 0.0025, [3 * PAYLOAD] * 2),
]


@pytest.mark.parametrize(("system", "ideal_s", "sent"), EMULATED)
def test_an_emulated_rival_is_no_faster_than_its_ideal(
    system: str, ideal_s: float, sent: list[int]
) -> None:
    result = emulate(system)
    assert len(result.seconds_per_batch) == 3
    assert min(result.seconds_per_batch) > ideal_s - 0.001
    assert list(result.bytes_sent) == sent


@pytest.mark.slow  # for a machine that does nothing else
@pytest.mark.parametrize(("system", "ideal_s", "sent"), EMULATED)
def test_an_emulated_rival_takes_little_more_than_its_ideal(
    system: str, ideal_s: float, sent: list[int]
) -> None:
    assert min(emulate(system).seconds_per_batch) < ideal_s + 0.05


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("raise", "InjectedFault: asked for at step 2"),
        ("exit", "the process ended with exit code 3"),
        ("kill", "the process was killed by SIGKILL"),
    ],
)
@pytest.mark.parametrize(("system", "rank"), [("ddp", 0), ("1f1b", 1)])
def test_the_first_cause_is_named(
    system: str, rank: int, how: Any, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(rank=rank, step=2, how=how)
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError) as caught:
        emulate(system)
    seconds = time.monotonic() - caught.value.failure.time_s
    place = f"rank {rank} (stage {rank}) failed at step 2, in the learning step"
    assert str(caught.value).startswith(place)
    assert cause in str(caught.value)
    assert how != "raise" or "in strike" in str(caught.value)
    assert seconds < 2
    assert ranks_of_this_process() == set()


def ranks_of_this_process() -> set[int]:
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    return descendants(server)


def test_a_hang_is_named_with_everybodys_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(rank=1, step=2, how="hang")
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError, match="no end after 4 s") as caught:
        emulate("1f1b", timeout_s=4)
    assert "rank 0, at step 2:" in str(caught.value)
    assert "rank 1, at step 2:" in str(caught.value)
    assert "in strike" in str(caught.value)
    assert ranks_of_this_process() == set()


SCRIPT = """
from tests.baselines.test_run import emulate
if __name__ == "__main__":
    emulate("1f1b", num_batches=10_000)
"""


@pytest.mark.slow
def test_ranks_leave_when_the_caller_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as caller:
        # The fork server, the tracker of resources, and two ranks.
        assert wait_until(lambda: len(list(folder.glob("ppll-*/page-1"))) == 1, 30)
        assert wait_until(lambda: len(descendants(caller.pid)) >= 4, 30)
        family = descendants(caller.pid)
        time.sleep(1)
        os.kill(caller.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in family), 5)
    assert list(folder.glob("ppll-*")) == []

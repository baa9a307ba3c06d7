"""A process that torchrun has started never outlives its agent, whenever that goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.host_runs import train, weights
from tests.namespaces import children, reason_for_none, torchrun_here
from tests.thinning import slow_but

OUTLIVES_S = 5.0
OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "left",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "9",
}
pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def is_there(process: int) -> bool:
    """Whether a process runs; who has ended and is not collected does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def has_loaded(process: int, library: str) -> bool:
    with suppress(OSError):
        return library in Path(f"/proc/{process}/maps").read_text()
    return False


def runs_python(process: int) -> bool:
    with suppress(OSError):
        return b"train" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def wait_until(happens: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent without a network, whose run does not end by itself."""
    process = torchrun_here(["-m", *train(tmp_path / "run", "--set=train.epochs=100000")])
    yield process
    process.kill()
    process.communicate()


MOMENTS = slow_but(["torch"], ["fork", "python", "torch", "joined", "trains"])


def has_come(moment: str, ranks: set[int], run: Path) -> bool:
    """Whether both processes have begun with something, or all have."""
    return (
        len(ranks) == 2
        and {
            "fork": lambda: True,
            "python": lambda: all(map(runs_python, ranks)),
            "torch": lambda: any(has_loaded(rank, "libtorch") for rank in ranks),
            "joined": run.exists,
            "trains": (run / "checkpoints/step-00000010/manifest.json").exists,
        }[moment]()
    )


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_process_outlives_its_agent(
    moment: str, agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wait_until(lambda: has_come(moment, children(agent.pid), run), 60, f"{moment!r} never came")
    ranks = children(agent.pid)
    agent.kill()
    wait_until(lambda: not any(map(is_there, ranks)), OUTLIVES_S, f"{ranks} are left")


def test_who_has_no_agent_leaves_before_it_starts(tmp_path: Path) -> None:
    """As where the agent dies before the first line runs: the shell is gone by then, and with it
    the only other process that could be taken for an agent."""
    command = [sys.executable, "-m", *train(tmp_path / "run")]
    shell = ["sh", "-c", 'trap "" HUP; "$@" & exit 0', "sh", *command]
    begin_s = time.monotonic()
    done = subprocess.run(
        shell, env={**os.environ, **OF_TORCHRUN}, stderr=subprocess.PIPE, text=True, timeout=60
    )
    # Its end of the pipe is closed when it has ended.
    assert time.monotonic() - begin_s < OUTLIVES_S
    assert "torchrun's agent is gone" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(reason_for_none() is not None, reason=str(reason_for_none()))
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_an_agent_may_be_the_first_process_of_a_container(tmp_path: Path) -> None:
    first = ["unshare", "--pid", "--fork", "--mount-proc"]
    agent = torchrun_here(["-m", *train(tmp_path / "run")], before=first)
    printed = agent.communicate(timeout=100)[0]
    assert agent.returncode == 0, printed
    assert weights(tmp_path / "run")

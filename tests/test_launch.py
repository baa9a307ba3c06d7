"""Real processes: the same bits, and the first cause of every failure."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import ppll
from ppll import fork_server
from ppll.config import Recipe
from ppll.data import Dataset
from ppll.errors import ChannelClosed, ChannelTimeout, Interrupted, WorkerError
from ppll.interrupts import Interrupts
from ppll.launching import agent, launch, stall
from ppll.launching.failure import Failure
from ppll.launching.lifeline import LauncherEnd
from ppll.run_folder import RunFolder
from ppll.status import Status, StatusPage
from ppll.testing import FAULT_VARIABLE, Fault
from tests.interleaving import NETWORKS, OPTIMIZERS
from tests.thinning import slow_but

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True, scope="session")
def running_fork_server() -> None:
    """It and torch's compiler keep a folder of their own for as long as this process lives."""
    fork_server.warm_up()
    importlib.import_module("torch._dynamo")


@pytest.fixture(autouse=True)
def private_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the launcher puts its sockets; nothing may be left in it."""
    # Not below tmp_path: the path of a socket may have some hundred bytes only.
    folder = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    yield folder
    assert list(folder.glob("*")) == []
    folder.rmdir()


def recipe(network: str = "resnet", optimizer: str = "sgd", **runtime: Any) -> Recipe:
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
            "model": NETWORKS[network],
            "optimizer": OPTIMIZERS[optimizer],
            "train": {"epochs": 3, "seed": 5},
            "runtime": {"stall_timeout_s": 60.0, **runtime},
            "checkpoint": {"every_steps": 3, "keep": 1},
        }
    )


@pytest.mark.parametrize(
    ("network", "optimizer"), slow_but([("resnet", "sgd")], [("resnet", "sgd"), ("vit", "adamw")])
)
def test_processes_give_the_same_bits(network: str, optimizer: str, tmp_path: Path) -> None:
    results = {}
    for stages, capacity in ((1, 2), (2, 1), (4, 8)):
        trainer = ppll.Trainer(
            recipe(network, optimizer, stages=stages, capacity=capacity), out=tmp_path / str(stages)
        )
        results[stages] = trainer.fit()
    assert len({result.weights_sha256 for result in results.values()}) == 1
    assert len({result.exit_accuracy for result in results.values()}) == 1
    assert [result.num_stages for result in results.values()] == [1, 2, 4]


def test_a_run_folder_holds_what_the_contract_says(tmp_path: Path) -> None:
    result = ppll.Trainer(recipe(stages=2), out=tmp_path / "run").fit()
    run = Path(result.run_folder)
    saved = json.loads((run / "result.json").read_text())
    assert saved["step"] == 12
    assert saved["epoch"] == 3
    assert len(saved["exit_accuracy"]) == saved["num_blocks"] == 4
    assert len(saved["busy_fraction"]) == len(saved["peak_memory_bytes"]) == 2
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000000",
        "step-00000012",
    ]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"train", "validation", "test"}
    assert {row["block"] for row in rows} == {0, 1, 2, 3}


def test_a_hang_shows_where_and_what_the_others_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(rank=1, step=2, how="hang")
    hanging = recipe(stages=2, capacity=1, stall_timeout_s=1.0)
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError) as caught:
        ppll.Trainer(hanging, out=tmp_path / "run").fit()
    assert "in strike" in str(caught.value)
    assert "rank 0: send_wait" in str(caught.value)


def own_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def own_data() -> Dataset:
    import torch

    inputs = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(1))
    targets = (inputs.sum(dim=(1, 2)) > 0).long()
    return Dataset.from_arrays(train=(inputs[:50], targets[:50]), test=(inputs[50:], targets[50:]))


@pytest.mark.parametrize("stages", [1, 3])
def test_own_model_and_data_hold_the_trained_values_afterwards(stages: int, tmp_path: Path) -> None:
    import torch

    model = own_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {
        "data": {"batch_size": 10},
        "split": {"blocks": 3},
        "method": {"name": "greedy"},
        "train": {"epochs": 5},
        "runtime": {"stages": stages},
    }
    result = ppll.Trainer(settings, model=model, data=own_data(), out=tmp_path / "run").fit()
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert set(changed) == set(before)
    own = own_data().test
    with torch.no_grad():
        hits = model.eval()(own.inputs).argmax(1) == own.targets
    assert hits.float().mean().item() == pytest.approx(result.test_accuracy)


def test_own_model_gives_the_same_bits_on_every_placement(tmp_path: Path) -> None:
    import torch

    shas = set()
    for stages in (1, 2):
        torch.manual_seed(3)
        model = own_model()
        settings = {
            "data": {"batch_size": 10},
            "split": {"blocks": 2},
            "train": {"epochs": 2},
            "runtime": {"stages": stages},
        }
        trainer = ppll.Trainer(settings, model=model, data=own_data(), out=tmp_path / str(stages))
        shas.add(trainer.fit().weights_sha256)
    assert len(shas) == 1


def descendants(pid: int) -> set[int]:
    """A process's children, their children, and so on."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    found = {int(child) for path in listed for child in path.read_text().split()}
    return found.union(*map(descendants, found))


def listening(pid: int) -> set[str]:
    """TCP sockets that a process listens on, by inode."""
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    rows = [line.split() for t in tables if t.exists() for line in t.read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == "0A"}
    links = set()
    with suppress(FileNotFoundError):  # What is open changes meanwhile; sockets that listen stay.
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.add(os.readlink(path))
    return {inode for inode in inodes if f"socket:[{inode}]" in links}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for sockets in /proc")
def test_on_one_host_no_port_is_open(tmp_path: Path) -> None:
    found: list[dict[int, set[str]]] = []

    def look(statuses: Sequence[Status]) -> None:
        if not found and all(status.step for status in statuses):
            pids = {os.getpid(), *descendants(os.getpid())}
            found.append({pid: listening(pid) for pid in pids if Path(f"/proc/{pid}").exists()})

    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening(os.getpid())) == 1  # The look sees what there is.
    ppll.Trainer(recipe(stages=3), out=tmp_path / "run", watch=look).fit()
    assert len(found[0]) >= 4  # this process and three ranks
    assert not any(found[0].values())


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_is_missing(tmp_path: Path) -> None:
    """Only its processes can tell whether an import comes to a line below an ``if``."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import ppll\n"
        'recipe = {"data": {"name": "synthetic"}, "runtime": {"stages": 2}}\n'
        "if recipe:\n"
        "    ppll.Trainer(recipe).fit()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": tempfile.gettempdir()}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 1
    assert 'stand below `if __name__ == "__main__":`? If it does, look above' in done.stderr
    assert done.stderr.count("Traceback") == 1  # of the script itself, not of each process
    assert "already holds" not in done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_is_the_launcher_s_and_the_run_saves_itself(
    number: signal.Signals, tmp_path: Path
) -> None:
    """As a terminal, ``timeout``, systemd and Slurm send it."""

    def signal_all(statuses: Sequence[Status]) -> None:
        if not signalled and statuses[-1].step > 1:
            signalled.extend([*descendants(os.getpid()), os.getpid()])
            for pid in signalled:
                os.kill(pid, number)

    signalled: list[int] = []
    servers = descendants(os.getpid())
    long = recipe(stages=2).with_settings(["train.epochs=1000"])
    with pytest.raises(Interrupted, match="interrupted at step"):
        ppll.Trainer(long, out=tmp_path / "run", watch=signal_all).fit()
    assert servers <= descendants(os.getpid())


OWN = f"""
import os, pathlib, threading, time
from torch import nn

class Own(nn.Flatten):
    pass

if os.getpid() != {os.getpid()}:
    pathlib.Path(__file__).with_suffix(".there").touch()
"""
"""A module that the processes of a run import before they can say anything."""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    name = f"own_{tmp_path.name}"
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / f"{name}.py"
    sys.modules.pop(name, None)


def trainer_with(module: Path, text: str, *, stall_timeout_s: float, **options: Any) -> Any:
    module.write_text(OWN + text)
    model = own_model()
    model[0] = importlib.import_module(module.stem).Own()
    runtime = {"stages": 2, "stall_timeout_s": stall_timeout_s}
    settings = {"data": {"batch_size": 10}, "split": {"blocks": 2}, "runtime": runtime}
    out = module.parent / "run"
    return ppll.Trainer(settings, model=model, data=own_data(), out=out, **options)


def test_a_second_signal_stops_ranks_that_have_said_nothing_yet(own_module: Path) -> None:
    def signal_twice(statuses: Sequence[Status]) -> None:
        if own_module.with_suffix(".there").exists():
            signal.raise_signal(signal.SIGINT)

    hang = "    time.sleep(600)"
    trainer = trainer_with(own_module, hang, stall_timeout_s=600.0, watch=signal_twice)
    with pytest.raises(Interrupted, match="interrupted twice"):
        trainer.fit()


def test_a_signal_to_ranks_that_come_up_is_no_failure(own_module: Path) -> None:
    """As ``timeout`` and others send it: to all processes."""
    sent = []

    def signal_all(statuses: Sequence[Status]) -> None:
        if own_module.with_suffix(".there").exists() and not sent:
            sent.extend([*descendants(os.getpid()), os.getpid()])
            for process in sent:
                os.kill(process, signal.SIGTERM)

    trainer = trainer_with(
        own_module, "    time.sleep(600)", stall_timeout_s=600.0, watch=signal_all
    )
    with pytest.raises(Interrupted, match="before training began"):
        trainer.fit()


def test_ranks_that_never_say_anything_are_named(
    own_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "_START_TIMEOUT_S", 0.0)
    trainer = trainer_with(own_module, "    time.sleep(600)", stall_timeout_s=2.0)
    message = r"while it started: no progress for 2 s [\s\S]*It has not reached the launcher"
    with pytest.raises(WorkerError, match=message):
        trainer.fit()


def test_a_rank_that_does_not_end_holds_up_no_run(
    own_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_FAREWELL_S", 0.0)
    monkeypatch.setattr(agent, "_COLLECTING_S", 0.5)
    thread = "    threading.Thread(target=time.sleep, args=(600,)).start()"
    assert trainer_with(own_module, thread, stall_timeout_s=60.0).fit().step == 50


class NoRanks:
    """Stands for an ``Agent`` whose ranks are gone."""

    error = None

    def is_running(self) -> bool:
        return False

    def exit_codes(self) -> dict[int, int]:
        return {}


@pytest.fixture
def launcher(own_module: Path) -> Iterator[launch.Launcher]:
    """One that rank 1 alone has reached."""
    job = trainer_with(own_module, "", stall_timeout_s=60.0)._job(RunFolder(own_module.parent))
    launcher = launch.Launcher(job, Interrupts())
    launcher._lines[1] = LauncherEnd(socket.socket(), 1)
    yield launcher
    launcher._lines[1].close()
    launcher._end(NoRanks())


def failure_of(error: Exception) -> Failure:
    return Failure.of(error, 1, StatusPage().read(), time.monotonic())


def test_who_does_not_come_up_is_named_not_who_waits_for_it(launcher: launch.Launcher) -> None:
    launcher._failures.append(failure_of(ChannelTimeout("nobody listened.")))
    first = launcher._first_cause(NoRanks())
    assert first.head().startswith(
        "rank 0 (stage 0) failed at step 0, while it started: it did not"
    )
    assert first.cause.endswith("ChannelTimeout: nobody listened.")


def test_who_saw_a_neighbour_go_is_named_where_nobody_knows_why(launcher: launch.Launcher) -> None:
    launcher._lines[1].aftermath = failure_of(ChannelClosed("the receiver is gone."))
    assert launcher._first_cause(NoRanks()) is launcher._lines[1].aftermath
    launcher._failures.append(failure_of(ValueError("why")))
    assert launcher._first_cause(NoRanks()) is launcher._failures[0]


class Unkillable:
    """Stands for an ``Agent`` whose ranks never end, as in a driver that does not answer."""

    error = None

    def __init__(self, *args: object) -> None:
        self.num_kills = 0

    def start(self) -> None:
        """They never say anything."""

    def is_running(self) -> bool:
        return True

    def ended_ranks(self) -> list[int]:
        return []

    def exit_codes(self) -> dict[int, int]:
        return {}

    def kill(self) -> None:
        self.num_kills += 1


def test_processes_that_cannot_be_killed_hold_up_no_message(
    own_module: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "Agent", Unkillable)
    monkeypatch.setattr(launch, "_HOPELESS_S", 0.2)
    monkeypatch.setattr(stall, "_START_TIMEOUT_S", 0.0)
    with pytest.raises(WorkerError, match=r"rank 0 .* no progress for 0.2 s"):
        trainer_with(own_module, "", stall_timeout_s=0.2).fit()
    assert "left behind" in caplog.text


def test_processes_that_cannot_be_killed_hold_up_no_interpreter(
    own_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its children when it ends, if it knows of them."""

    def signal_twice(statuses: Sequence[Status]) -> None:
        if own_module.with_suffix(".there").exists():
            there.extend(multiprocessing.active_children())
            signal.raise_signal(signal.SIGINT)

    there: list[BaseProcess] = []
    monkeypatch.setattr(agent.Agent, "kill", lambda _: None)
    monkeypatch.setattr(launch, "_HOPELESS_S", 0.2)
    hang = "    time.sleep(600)"
    trainer = trainer_with(own_module, hang, stall_timeout_s=600.0, watch=signal_twice)
    with pytest.raises(Interrupted, match="interrupted twice"):
        trainer.fit()
    waited_for = multiprocessing.active_children()
    codes = [process.exitcode for process in there]
    for process in there:
        process.kill()
        process.join()
    assert set(codes) == {None}
    assert waited_for == []


def test_exit_codes_that_never_come_are_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waiting:
        def join(self, timeout_s: float) -> None:
            waits.append(timeout_s)

        def is_alive(self) -> bool:
            return True

    waits: list[float] = []
    ended = agent.Agent(print, (), 2, tmp_path)
    monkeypatch.setattr(ended, "_thread", Waiting())
    monkeypatch.setattr(ended, "_processes", lambda: [None, None])
    monkeypatch.setattr(ended, "ended_ranks", lambda: [0, 1])
    assert not ended.is_running()
    assert not ended.is_running()
    assert waits == [5.0]

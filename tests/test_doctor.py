"""What `ppll doctor` finds on this machine, and on worse ones."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch

from ppll import doctor, limits, trials
from ppll.doctor import CHECKS, Check, Finding, examine
from ppll.environment import describe_environment
from ppll.errors import ChannelError
from ppll.trials import Verdict

NAMES = [check.name for check in CHECKS]
CALM = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def find(name: str) -> Finding:
    """What the one check of that name comes to."""
    return next(check for check in CHECKS if check.name == name).examine()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of a short name, and a working folder; nothing stays in them."""
    with tempfile.TemporaryDirectory(prefix="d-") as root:
        folders = [Path(root, "tmp"), Path(root, "work")]
        for folder in folders:
            folder.mkdir()
        monkeypatch.setenv("TMPDIR", str(folders[0]))
        monkeypatch.setattr(tempfile, "tempdir", str(folders[0]))
        monkeypatch.chdir(folders[1])
        for name in CALM:
            monkeypatch.delenv(name, raising=False)
        num_files = len(os.listdir("/dev/fd"))
        yield folders[0]
        assert [path for folder in folders for path in folder.iterdir()] == []
        assert len(os.listdir("/dev/fd")) == num_files


# --- this machine ------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("name", NAMES)
def test_every_check_comes_to_a_finding_here(name: str) -> None:
    num_threads = threading.active_count()
    finding = find(name)
    assert finding.name == name
    assert finding.state in ("ok", "warning"), finding
    assert finding.found
    assert bool(finding.advice) == (finding.state != "ok")
    assert threading.active_count() == num_threads


def test_all_are_examined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = tuple(Check(name, lambda: Verdict("fine"), "none") for name in ("one", "two"))
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert examine() == [Finding("one", "ok", "fine"), Finding("two", "ok", "fine")]


def test_names_are_unique_and_every_check_has_advice() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(check.advice.endswith(".") for check in CHECKS)


def test_the_module_needs_no_torch() -> None:
    code = "import sys, ppll.doctor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- whatever happens --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit("odd"), MemoryError("odd")])
def test_an_exception_becomes_a_finding(error: BaseException) -> None:
    def fail() -> NoReturn:
        raise error

    found = f"{type(error).__name__}: odd"
    assert Check("it", fail, "mend it.").examine() == Finding("it", "problem", found, "mend it.")
    assert Check("it", fail, "mend it.", "warning").examine().state == "warning"


def test_a_check_that_never_ends_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.1)

    def wait() -> Verdict:
        end.wait()
        return Verdict("at last")

    finding = Check("it", wait, "mend it.").examine()
    end.set()
    assert finding == Finding("it", "problem", "no answer in 0.1 s", "mend it.")


def test_it_works_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Check("it", lambda: Verdict("fine"), "mend it.").examine().found == "fine"


# --- what is installed -------------------------------------------------------------------------


def test_an_old_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    finding = find("torch")
    assert finding.state == "problem"
    assert "2.9.1" in finding.found
    assert "2.10" in finding.advice


def test_a_missing_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = find("torch")
    assert finding.state == "problem"
    assert "pip install" in finding.advice


def test_extras_that_are_missing_or_broken_can_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_extra.py").write_text("raise AttributeError('no such symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    extras = (("a", "json", "x"), ("b", "broken_extra", "y"), ("c", "missing_extra", "z"))
    monkeypatch.setattr(trials, "_EXTRAS", extras)
    monkeypatch.setattr("ppll.extras.PACKAGES", {"a": ">=1", "b": ">=2", "c": ">=3"})
    finding = find("extras")
    assert finding.state == "warning"
    found = "installed: a; missing: c (for z); broken: b (no such symbol; for y)"
    assert finding.found == found
    assert "pip install 'b>=2' 'c>=3'" in finding.advice


# --- what computes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "variables", "state"),
    [
        (8, {}, "ok"),
        (8, {"OMP_NUM_THREADS": "8", "OMP_PROC_BIND": "false"}, "ok"),
        (8, {"OMP_NUM_THREADS": "9"}, "warning"),
        (8, {"OMP_NUM_THREADS": "0"}, "warning"),
        (8, {"OMP_NUM_THREADS": "many"}, "warning"),
        (8, {"OMP_PROC_BIND": "close"}, "warning"),
        (8, {"GOMP_CPU_AFFINITY": "0-3"}, "warning"),
        (1.5, {"OMP_NUM_THREADS": "1"}, "warning"),
    ],
)
def test_threads_that_fight_for_cores_are_warned_of(
    cores: float, variables: dict[str, str], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "num_cores", lambda: cores)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = find("processors")
    assert finding.state == state
    assert finding.found.startswith(f"{cores:g} cores")


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, peers: list[list[bool]]) -> None:
    card = SimpleNamespace(name="H100", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(peers))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(peers))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: peers[a][b])


def test_no_gpu_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, [])
    monkeypatch.setattr(trials, "_DRIVER", Path("missing"))
    assert find("gpus") == Finding("gpus", "ok", "none; training runs on processors")


def test_one_gpu_has_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, [[True]])
    assert find("gpus") == Finding("gpus", "ok", "0: H100, 80 GiB")


def test_gpus_with_peer_access_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, [[True] * 2] * 2)
    finding = find("gpus")
    assert finding.state == "ok"
    assert "1: H100, 80 GiB; peer access for all" in finding.found


def test_pairs_without_peer_access_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, [[True, True, False], [True, True, True], [True, False, True]])
    finding = find("gpus")
    assert finding.state == "warning"
    assert finding.found.endswith("no peer access from 0 to 2, 2 to 1")
    assert "nvidia-smi topo" in finding.advice


def test_gpus_that_torch_cannot_see_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, [])
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(trials, "_DRIVER", driver)
    finding = find("gpus")
    assert finding.state == "warning"
    assert "sees no GPU" in finding.found


def test_what_torch_complains_of_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def complain() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", complain)
    finding = find("gpus")
    assert (finding.state, finding.found) == (
        "warning",
        "The NVIDIA driver on your system is too old",
    )


# --- what connects processes -------------------------------------------------------------------


def test_too_little_memory_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "available_memory_bytes", lambda: 100 << 20)
    monkeypatch.setattr(trials, "_write_shared_memory", lambda: pytest.fail("it was tried"))
    finding = find("shared memory")
    assert finding.state == "problem"
    assert "100 MiB" in finding.found
    assert "runtime.capacity" in finding.advice


def test_little_memory_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "available_memory_bytes", lambda: 500 << 20)
    finding = find("shared memory")
    assert finding.state == "warning"
    assert finding.found == "64 MiB written, 500 MiB available"
    assert "data.batch_size" in finding.advice


def test_memory_that_cannot_be_reserved_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("posix_fallocate", "ftruncate"):
        monkeypatch.setattr(os, name, refuse, raising=False)
    finding = find("shared memory")
    assert finding.state == "problem"
    assert "cannot reserve 64 MiB" in finding.found


def test_a_temporary_folder_of_a_long_name_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    finding = find("unix sockets")
    assert finding.state == "problem"
    assert "too long" in finding.found
    assert "TMPDIR" in finding.advice
    assert not list(folder.iterdir())


def test_a_descriptor_that_gets_lost_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.send_fds", lambda peer, buffers, fds: peer.send(buffers[0]))
    finding = find("unix sockets")
    assert finding.state == "problem"
    assert "descriptor" in finding.found


def test_a_listener_whom_nobody_reaches_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise ChannelError("the other end belongs to user 7, not 0.")

    monkeypatch.setattr("ppll.channels.sockets.connect", refuse)
    assert "user 7" in find("unix sockets").found


def test_without_loopback_one_host_still_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr("socket.create_server", refuse)
    finding = find("loopback")
    assert finding.state == "warning"
    assert "one host needs no port" in finding.advice


# --- what processes need -----------------------------------------------------------------------


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open no more than some 40 files besides those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_few_open_files_are_counted_in_stages() -> None:
    finding = find("open files")
    assert finding.state == "warning"
    assert finding.found.startswith("only ")
    assert "ulimit -n" in finding.advice


@pytest.mark.parametrize(("count", "state"), [(384, "ok"), (60, "warning"), (11, "problem")])
def test_few_threads_are_counted_in_stages(
    count: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "num_startable_threads", lambda wanted: count)
    finding = find("threads")
    assert finding.state == state
    assert f"enough for {count // 6} stages" in finding.found


@pytest.mark.processes
def test_threads_are_counted_up_to_those_wanted() -> None:
    assert limits.num_startable_threads(7) == 7


@pytest.mark.processes
def test_a_process_that_cannot_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_START_A_PROCESS", "import sys; sys.exit('no more processes')")
    finding = find("fork server")
    assert (finding.state, finding.found) == ("problem", "OSError: no more processes")


@pytest.mark.processes
def test_a_process_that_never_ends_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born = tmp_path / "born"
    program = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"pathlib.Path({str(born)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(limits, "_START_A_PROCESS", program)
    monkeypatch.setattr(limits, "_TIMEOUT_S", 2.0)
    finding = find("fork server")
    assert finding.state == "problem"
    assert "did not end within 2 s" in finding.found
    deadline = time.monotonic() + 5
    while is_alive(int(born.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")


# --- what stays --------------------------------------------------------------------------------

DISKS = ("disk of runs", "disk of temporary files")


@pytest.mark.parametrize("name", DISKS)
def test_a_full_disk_is_a_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    finding = find(name)
    assert finding.state == "problem"
    assert "No space left" in finding.found


@pytest.mark.parametrize("name", DISKS)
def test_a_folder_that_cannot_be_written_to_is_a_problem(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    finding = find(name)
    assert finding.state == "problem"
    assert "Permission denied" in finding.found
    assert finding.advice


@pytest.mark.parametrize("name", DISKS)
def test_little_room_is_warned_of(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300 << 20))
    finding = find(name)
    assert finding.state == "warning"
    assert finding.found.startswith("0.3 GiB free in ")


def test_the_disk_of_runs_is_that_of_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("disk of runs").found.endswith(f" in {tmp_path}")
    (tmp_path / "runs").mkdir()
    assert find("disk of runs").found.endswith(f" in {tmp_path / 'runs'}")


# --- limits of containers ----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB to give and no groups; what is written here is what it says."""
    monkeypatch.setattr(limits, "_PROC", tmp_path)
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    write(tmp_path, "meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{content}\n")


def test_without_groups_the_machine_counts(machine: Path) -> None:
    assert limits.available_memory_bytes() == 8 << 30
    assert limits.num_cores() == 8


def test_a_machine_that_says_nothing(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert limits.available_memory_bytes() is None


def test_groups_of_version_2_limit_memory_and_cores(machine: Path) -> None:
    write(machine, "self/cgroup", "0::/outer/inner")
    outer, inner = machine / "groups/outer", machine / "groups/outer/inner"
    for name, content in (("memory.max", 3 << 30), ("memory.current", 2 << 30)):
        write(outer, name, content)
    write(outer, "memory.stat", f"anon 5\ninactive_file {512 << 20}")
    write(outer, "cpu.max", "250000 100000")
    for name in ("memory.max", "cpu.max"):
        write(inner, name, "max 100000" if name == "cpu.max" else "max")
    write(inner, "memory.current", 1 << 30)
    assert limits.available_memory_bytes() == 1536 << 20
    assert limits.num_cores() == 2.5
    assert describe_environment()["num_cores"] == 2


def test_groups_of_version_1_limit_memory_and_cores(machine: Path) -> None:
    write(machine, "self/cgroup", "5:memory:/elsewhere\n4:cpu,cpuacct:/a\n1:name=systemd:/\n0::/")
    memory, cpu = machine / "groups/memory", machine / "groups/cpu"
    write(memory, "memory.limit_in_bytes", 1 << 30)
    write(memory, "memory.usage_in_bytes", 1 << 29)
    write(cpu / "a", "cpu.cfs_quota_us", 150000)
    write(cpu / "a", "cpu.cfs_period_us", 100000)
    write(cpu, "cpu.cfs_quota_us", -1)
    write(cpu, "cpu.cfs_period_us", 100000)
    assert limits.available_memory_bytes() == 1 << 29
    assert limits.num_cores() == 1.5


def test_a_group_that_is_over_its_limit_has_nothing_left(machine: Path) -> None:
    write(machine, "self/cgroup", "0::/")
    write(machine / "groups", "memory.max", 100)
    write(machine / "groups", "memory.current", 200)
    assert limits.available_memory_bytes() == 0


def test_a_limited_address_space_counts(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine, "self/statm", "10 5 1 1 0 1 0")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    assert limits.available_memory_bytes() == (1 << 20) - 10 * resource.getpagesize()


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["ok"], "Runs work here."),
        (["ok", "warning"], "Runs work here; 1 to know of: see warning above."),
        (["warning", "problem", "problem"], "2 to mend before runs can work: see problem above."),
    ],
)
def test_it_ends_with_what_all_of_it_means(states: list[trials.State], words: str) -> None:
    assert doctor.conclude([doctor.Finding("x", state, "") for state in states]) == words

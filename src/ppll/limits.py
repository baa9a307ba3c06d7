"""What the machine lets this process have: memory, cores, files, threads, processes.

A container's limits (control groups of version 1 or 2) count where they lie below the machine's.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from ppll.fork_server import START_METHOD

__all__ = [
    "available_memory_bytes",
    "num_cores",
    "num_openable_files",
    "num_startable_threads",
    "start_process",
]

_TIMEOUT_S: Final = 20.0

_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")

_START_A_PROCESS: Final = f"""
import multiprocessing, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: sys.exit("no process within 15 s"))
signal.alarm(15)
process = multiprocessing.get_context({START_METHOD!r}).Process(target=os.getpid, daemon=True)
process.start()
process.join()
sys.exit(process.exitcode)
"""

_COUNT_THREADS: Final = """
import sys, threading
threading.stack_size(1 << 16)
gate, count = threading.Event(), 0
try:
    while count < WANTED:
        threading.Thread(target=gate.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count)
"""


def available_memory_bytes() -> int | None:
    """What can still be had before a limit is reached; ``None`` where the machine does not say."""
    rooms = [_machine_room(), _address_room(), *map(_group_room, _group_folders("memory"))]
    return min((max(room, 0) for room in rooms if room is not None), default=None)


def num_cores() -> float:
    """Cores that this process may keep busy; a container's share need not be a whole number."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    shares = [share for folder in _group_folders("cpu") if (share := _group_cores(folder))]
    return min([cores, *shares])


def num_openable_files(wanted: int) -> int:
    """How many of the files that are wanted this process can open, besides those that it has."""
    count = 0
    with ExitStack() as files, suppress(OSError):
        while count < wanted:
            files.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            count += 1
    return count


def num_startable_threads(wanted: int) -> int:
    """How many of the threads that are wanted this user can start; processes count as threads.

    Raises:
        OSError: Not even a process was started.
    """
    return int(_run_python(_COUNT_THREADS.replace("WANTED", str(wanted))))


def start_process() -> None:
    """Start a process as the launcher starts ranks, through a fork server.

    Raises:
        OSError: It did not start.
    """
    _run_python(_START_A_PROCESS)


def _run_python(program: str) -> str:
    """Run a program in a session of its own; no part of it is left afterwards."""
    command = [sys.executable, "-P", "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            # Its children hold the pipes as well, so this waits for all of them.
            out, err = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"a process did not end within {_TIMEOUT_S:g} s") from None
    if process.returncode:
        raise OSError(err.strip().rpartition("\n")[2] or f"exit code {process.returncode}")
    return out


def _machine_room() -> int | None:
    kibibytes = _entries(_PROC / "meminfo").get("MemAvailable:")
    return None if kibibytes is None else kibibytes * 1024


def _address_room() -> int | None:
    """What ``ulimit -v`` leaves to this process."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    with suppress(OSError):
        if limit != resource.RLIM_INFINITY:
            pages = int((_PROC / "self" / "statm").read_text().split()[0])
            return limit - pages * resource.getpagesize()
    return None


def _group_folders(controller: str) -> Iterator[Path]:
    """The control groups that this process lies in, from the outermost that can be seen."""
    with suppress(OSError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _GROUPS / controller if controllers else _GROUPS
            names = path.strip("/").split("/")
            yield from dict.fromkeys(root.joinpath(*names[:n]) for n in range(len(names) + 1))


def _group_room(folder: Path) -> int | None:
    """What a control group can still take; files that nobody reads make room when it must be."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, used = (_numbers(folder / name) for name in names[:2])
    if not limit or not used:
        return None
    return limit[0] - used[0] + _entries(folder / "memory.stat").get(names[2], 0)


def _group_cores(folder: Path) -> float | None:
    """The share of processor time that a control group gets, in cores."""
    share = _numbers(folder / "cpu.max")
    if not share:
        share = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
    return share[0] / share[1] if len(share) == 2 and share[0] > 0 else None


def _numbers(file: Path) -> list[int]:
    """The numbers in a file; none where one is ``max``, which is no limit, or there is no file."""
    with suppress(OSError, ValueError):
        return [int(word) for word in file.read_text().split()]
    return []


def _entries(file: Path) -> dict[str, int]:
    """The numbers in a file by the word before them."""
    with suppress(OSError, ValueError):
        lines = [line.split() for line in file.read_text().splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return {}

"""What ``ppll doctor`` tries on this machine.

A trial returns what it found; where the machine cannot do the thing, it raises whatever comes of
it. Nothing is left behind either way.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ppll.durable import write_whole
from ppll.extras import pip_install
from ppll.limits import (
    available_memory_bytes,
    num_cores,
    num_openable_files,
    num_startable_threads,
    start_process,
)

__all__ = [
    "State",
    "Verdict",
    "extras_import",
    "files_open",
    "gpus_are_seen",
    "loopback_answers",
    "memory_is_shared",
    "processes_start",
    "processors_are_free",
    "run_folder_is_writable",
    "sockets_meet",
    "temporary_folder_is_writable",
    "threads_start",
    "torch_works",
]

State = Literal["ok", "warning", "problem"]

_TIMEOUT_S: Final = 20.0
_MEMORY_BYTES: Final = 64 << 20
_LITTLE_BYTES: Final = 1 << 30
_OLDEST_PYTHON: Final = (3, 11)
_OLDEST_TORCH: Final = "2.10"
_DRIVER: Final = Path("/proc/driver/nvidia/version")
_PINS: Final = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_UNPINNED: Final = ("", "false", "none", "disabled")
_MANY_STAGES: Final = 64
_FILES_A_STAGE: Final = 8
"""The launcher of two stages has 20 files open, of four 34."""

_THREADS_A_STAGE: Final = 6
"""A rank at rest has three; copies, the prefetch and a checkpoint take one more each."""

_EXTRAS: Final = (
    ("scikit-learn", "sklearn.datasets", "digits"),
    ("pyarrow", "pyarrow.parquet", "parquet files of CIFAR-10, SVHN, STL-10"),
    ("pillow", "PIL.Image", "the same, and folders of images"),
    ("datasets", "datasets", "CIFAR-10, SVHN, STL-10 by download"),
    ("matplotlib", "matplotlib", "pictures of timelines and studies"),
    ("tensorboard", "tensorboard", "track.tensorboard"),
)
"""Name, a module that is used, what needs it."""


class Verdict(NamedTuple):
    """What a trial found, how good that is, and how it gets better."""

    found: str
    state: State = "ok"
    advice: str = ""


def _warn_if(bad: bool, found: str, advice: str) -> Verdict:
    return Verdict(found, "warning", advice) if bad else Verdict(found)


# --- what is installed -------------------------------------------------------------------------


def torch_works() -> Verdict:
    """Python and torch are new enough, and torch and NumPy understand each other."""
    import numpy as np
    import torch
    from torch.torch_version import TorchVersion

    torch.autograd.backward(torch.from_numpy(np.ones(2, dtype=np.float32)).requires_grad_().sum())
    found = f"Python {sys.version.split()[0]}, torch {torch.__version__}, NumPy {np.__version__}"
    if sys.version_info[:2] < _OLDEST_PYTHON or TorchVersion(_OLDEST_TORCH) > torch.__version__:
        return Verdict(found, "problem", "install Python 3.11 and torch 2.10, or newer ones.")
    return Verdict(found)


def extras_import() -> Verdict:
    """What some data sets and views need can be imported."""
    states: dict[str, list[str]] = {"installed": [], "missing": [], "broken": []}
    wanted = []
    for name, module, use in _EXTRAS:
        state, trouble = _import_state(module)
        states[state].append(name if state == "installed" else f"{name} ({trouble}for {use})")
        wanted += [name] if state != "installed" else []
    found = "; ".join(f"{state}: {', '.join(names)}" for state, names in states.items() if names)
    advice = f"training works without; if you need them: {pip_install(*wanted)}."
    return _warn_if(bool(wanted), found, advice)


def _import_state(module: str) -> tuple[str, str]:
    """``installed``, ``missing`` or ``broken``, and what is wrong with what is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ModuleNotFoundError:
        return "missing", ""
    except Exception as error:
        return "broken", f"{error}; "
    return "installed", ""


# --- what computes -----------------------------------------------------------------------------


def processors_are_free() -> Verdict:
    """Stages can compute side by side."""
    cores, threads = num_cores(), os.environ.get("OMP_NUM_THREADS", "")
    pins = [f"{name}={os.environ[name]}" for name in _PINS if _pins(name)]
    settings = ([f"OMP_NUM_THREADS={threads}"] if threads else []) + pins
    found = ", ".join([f"{cores:g} cores", *settings])
    if pins:
        return Verdict(found, "warning", "unset it: it can tie all stages to the same core.")
    if threads and not (threads.isdecimal() and 1 <= int(threads) <= max(cores, 1)):
        advice = "unset OMP_NUM_THREADS; stages go by train.threads_per_stage."
        return Verdict(found, "warning", advice)
    return _warn_if(cores < 2, found, "stages take turns: --stages 1 is as fast as more.")


def _pins(name: str) -> bool:
    return os.environ.get(name, "").lower() not in _UNPINNED


def gpus_are_seen() -> Verdict:
    """Torch sees the GPUs that there are, and each reaches the memory of the others."""
    import torch

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return _describe_gpus(count)
    advice = "install a torch for this driver's CUDA, and look at CUDA_VISIBLE_DEVICES."
    complaints = [str(w.message) for w in heard if issubclass(w.category, UserWarning)]
    if complaints:
        return Verdict(complaints[0], "warning", advice)
    if _DRIVER.exists():
        found = f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU"
        return Verdict(found, "warning", advice)
    return Verdict("none; training runs on processors")


def _describe_gpus(count: int) -> Verdict:
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    parts = [f"{i}: {g.name}, {g.total_memory / 2**30:.0f} GiB" for i, g in enumerate(gpus)]
    pairs = list(permutations(range(count), 2))
    apart = [f"{a} to {b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if pairs:
        parts.append(f"no peer access from {', '.join(apart)}" if apart else "peer access for all")
    advice = "nvidia-smi topo -m shows what lies between them."
    return _warn_if(bool(apart), "; ".join(parts), advice)


# --- what connects processes -------------------------------------------------------------------


def memory_is_shared() -> Verdict:
    """Memory for channels can be reserved, mapped and written, and there is enough of it."""
    available = available_memory_bytes()
    if available is not None and available < 2 * _MEMORY_BYTES:
        raise MemoryError(f"{available >> 20:,} MiB are available")  # to try might kill us
    _write_shared_memory()
    there = "" if available is None else f", {available >> 20:,} MiB available"
    little = available is not None and available < _LITTLE_BYTES
    advice = "use fewer stages, or lower runtime.capacity or data.batch_size."
    return _warn_if(little, f"{_MEMORY_BYTES >> 20} MiB written{there}", advice)


def _write_shared_memory() -> None:
    from ppll.channels.memory import Slots, reserve

    fd = reserve(_MEMORY_BYTES)
    try:
        slots = Slots(fd, _MEMORY_BYTES, 1)
        slots.poison(0)
        slots.close()
        if os.pread(fd, 1, _MEMORY_BYTES - 1) != b"\xff":
            raise OSError("what was written to shared memory is not there")
    finally:
        os.close(fd)


def sockets_meet() -> Verdict:
    """Two ends meet in a private folder, one proves the secret and hands over a descriptor."""
    from ppll.channels import sockets

    secret = secrets.token_bytes(32)
    with _private_folder(Path(tempfile.gettempdir())) as folder, ExitStack() as ends:
        path = folder / f"launcher-{_MANY_STAGES}"
        listener = ends.enter_context(sockets.listen(path))
        sender = ends.enter_context(sockets.connect(path, secret, _TIMEOUT_S))
        receiver = ends.enter_context(sockets.accept(listener, secret, _TIMEOUT_S))
        receiver.settimeout(_TIMEOUT_S)
        socket.send_fds(sender, [b"d"], [sender.fileno()])
        _, received, _, _ = socket.recv_fds(receiver, 1, 1)
        ends.callback(sockets.close_all, received)
        if not received or not os.path.sameopenfile(received[0], sender.fileno()):
            raise OSError("the descriptor did not arrive")
    return Verdict(f"processes can meet in {folder.parent}")


def loopback_answers() -> Verdict:
    """A port is free on the loopback interface, and a byte comes through."""
    with ExitStack() as ends:
        listener = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(_TIMEOUT_S)
        address = listener.getsockname()
        sender = ends.enter_context(socket.create_connection(address, _TIMEOUT_S))
        receiver = ends.enter_context(listener.accept()[0])
        receiver.settimeout(_TIMEOUT_S)
        sender.sendall(b"b")
        if receiver.recv(1) != b"b":
            raise OSError("the byte did not arrive")
    return Verdict("127.0.0.1 has a free port and answers (only torchrun needs it)")


# --- what processes need -----------------------------------------------------------------------


def processes_start() -> Verdict:
    """The fork server runs and starts a process."""
    start_process()
    return Verdict("a process of a stage starts")


def files_open() -> Verdict:
    """A launcher of many stages may open its files."""
    wanted = _MANY_STAGES * _FILES_A_STAGE
    advice = f"raise the limit: ulimit -n {4 * wanted}."
    return _room_for_stages(num_openable_files(wanted), "files", _FILES_A_STAGE, advice)


def threads_start() -> Verdict:
    """The threads of many stages can be started."""
    wanted = _MANY_STAGES * _THREADS_A_STAGE
    advice = "raise the limits: ulimit -u, and the container's pids limit."
    return _room_for_stages(num_startable_threads(wanted), "threads", _THREADS_A_STAGE, advice)


def _room_for_stages(count: int, things: str, a_stage: int, advice: str) -> Verdict:
    stages = count // a_stage
    if stages >= _MANY_STAGES:
        return Verdict(f"{count} more {things}, enough for {stages} stages")
    state: State = "warning" if stages > 1 else "problem"
    return Verdict(f"only {count} more {things}, enough for {stages} stages", state, advice)


# --- what stays --------------------------------------------------------------------------------


def run_folder_is_writable() -> Verdict:
    """Files can be kept where runs go by default."""
    runs = Path("runs").absolute()
    return _keep_a_file(runs if runs.is_dir() else Path.cwd())


def temporary_folder_is_writable() -> Verdict:
    """Files can be kept in the temporary folder."""
    return _keep_a_file(Path(tempfile.gettempdir()))


def _keep_a_file(folder: Path) -> Verdict:
    with _private_folder(folder) as place:
        write_whole(place / "file", bytes(4096))
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:,.1f} GiB free in {folder}"
    return _warn_if(free < _LITTLE_BYTES, found, "make room, or choose another folder.")


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ppll-", dir=parent) as folder:
        yield Path(folder)

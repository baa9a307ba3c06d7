"""What a recipe says about arithmetic, as torch is told of it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from ppll.sections import TrainConfig

__all__ = ["autocast_dtype", "in_turn", "own_generator", "set_numerics", "torch_as_new"]

_runs = threading.RLock()
_turns = threading.RLock()

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def autocast_dtype(train: TrainConfig) -> torch.dtype | None:
    """Type of a forward's matrix products; none for float32."""
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[train.precision]


def set_numerics(train: TrainConfig, device: torch.device) -> None:
    """Set threads and TF32 of this process, and what makes a GPU repeat itself.

    Torch's own default is TF32 for convolutions and float32 for other matrix products.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(train.deterministic)
        # Nobody reads what is not written, and to fill it takes as many kernels as the rest.
        torch._C._set_deterministic_fill_uninitialized_memory(False)
    torch.set_num_threads(train.threads_per_stage)
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32


@contextmanager
def own_generator() -> Iterator[None]:
    """Torch's default generator is the calling thread's alone, and afterwards as it was.

    A process has one, and what is seeded and drawn in one thread would change the bits of another:
    so threads take turns. A run has its turns message by message (``in_turn``), so that a callback
    can load a network meanwhile.
    """
    with _turns, torch.random.fork_rng(devices=()):
        yield


def in_turn(step: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """A step that draws from torch's default generator, while no other thread does."""

    @functools.wraps(step)
    def taken(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with _turns:
            return step(*args, **kwargs)

    return taken


@contextmanager
def torch_as_new() -> Iterator[None]:
    """Torch's settings as a new process has them, and afterwards as they were: the bits count.

    They are the process's, so threads take turns.
    """
    with _runs:
        yield from _as_new()


def _as_new() -> Iterator[None]:
    num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    repeats = torch.are_deterministic_algorithms_enabled()
    fills = torch._C._get_deterministic_fill_uninitialized_memory()
    with _turns:
        drawn = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        with (
            _gpus_as_they_were(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        with _turns:
            torch.set_rng_state(drawn)
        if torch.are_deterministic_algorithms_enabled() != repeats:
            torch.use_deterministic_algorithms(repeats)
        torch._C._set_deterministic_fill_uninitialized_memory(fills)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)


@contextmanager
def _gpus_as_they_were() -> Iterator[None]:
    """Generators of GPUs and the current one are afterwards as before, if anybody used them."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    # Not torch.random.fork_rng, which puts the processor's back as well, out of turn.
    gpus = range(torch.cuda.device_count())
    drawn = [torch.cuda.get_rng_state(gpu) for gpu in gpus]
    try:
        with torch.cuda.device(torch.cuda.current_device()):
            yield
    finally:
        for gpu in gpus:
            torch.cuda.set_rng_state(drawn[gpu], gpu)

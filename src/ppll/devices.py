"""Which device a stage computes on."""

from __future__ import annotations

import re
from typing import Final

import torch

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.placement import mesh_of
from ppll.recipe_text import shown
from ppll.sections import RuntimeConfig
from ppll.status import resident_peak_bytes

__all__ = ["check_devices", "describe_device", "device_of", "peak_memory_bytes"]

_NAME: Final = re.compile(r"auto|cpu|cuda(:\d+)?")


def device_of(runtime: RuntimeConfig, rank: int) -> torch.device:
    """The device of a rank; ``"cuda"`` is one GPU after the other, ``"auto"`` the same where there
    is one."""
    devices = runtime.devices
    name = devices if isinstance(devices, str) else devices[rank]
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def check_devices(recipe: Recipe) -> None:
    """Refuse devices that this machine does not have.

    Raises:
        RecipeError: A name is none of a device, a GPU is asked for where there is none, there is
            not one device a stage, or CUDA graphs are to be recorded elsewhere than on GPUs.
    """
    devices = recipe.runtime.devices
    names = (devices,) if isinstance(devices, str) else devices
    num_gpus = torch.cuda.device_count()
    for name in names:
        _check(name, num_gpus)
    stages, replicas = recipe.runtime.stages, recipe.train.replicas
    if not isinstance(devices, str):
        size = mesh_of(replicas, stages).size
        of = f" with train.replicas = {shown(replicas)}" if recipe.most_replicas > 1 else ""
        if len(devices) != size:
            raise RecipeError(
                f"runtime.devices names {len(devices)} devices for {stages} stages "
                f"(runtime.stages){of}: name one a {'process' if of else 'stage'} ({size} in all), "
                f"or one for all."
            )
    num = stages if isinstance(devices, str) else len(devices)
    kinds = {device_of(recipe.runtime, rank).type for rank in range(num)}
    if recipe.runtime.sharding != "none" and "cuda" in kinds:
        raise RecipeError(
            f"runtime.sharding shares what lies in the memory of processors, but runtime.devices "
            f'is {devices!r}: set runtime.devices = "cpu", or runtime.sharding = "none".'
        )
    on_gpus = kinds == {"cuda"}
    if recipe.train.cuda_graphs and not on_gpus:
        raise RecipeError(
            f"train.cuda_graphs records what GPUs do, but runtime.devices is {devices!r}: set "
            f'runtime.devices = "cuda", or train.cuda_graphs = false.'
        )


def _check(name: str, num_gpus: int) -> None:
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f'runtime.devices: {name!r} is no device: name "auto", "cpu", "cuda" or "cuda:0".'
        )
    index = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and index >= num_gpus:
        there = f"cuda:0 to cuda:{num_gpus - 1}" if num_gpus else "none"
        raise RecipeError(
            f"runtime.devices asks this machine for {name!r}. Of GPUs it has {there}: set "
            f'runtime.devices = "cpu".'
        )


def describe_device(device: torch.device, processor: str) -> str:
    """What a device is called: the GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has had: of a GPU what torch had allocated there, else resident
    memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_peak_bytes()

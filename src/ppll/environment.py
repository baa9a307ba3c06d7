"""What a run ran on: what a bug report needs, and what law 1 ("the same bits") depends on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from ppll.limits import num_cores

__all__ = ["code_digest", "describe_environment", "describe_processor", "package_versions"]

_PACKAGES = (
    *("ppll", "torch", "numpy", "pydantic", "safetensors"),
    *("scikit-learn", "datasets", "pyarrow", "pillow"),
    *("timm", "torchvision", "transformers"),
)


def describe_environment() -> dict[str, Any]:
    """Versions, processor, memory and GPUs of this machine, ready for JSON."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": describe_processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": max(1, int(num_cores())),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": package_versions(_PACKAGES),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    return {name: version for name in names if (version := _version(name))}


@functools.cache
def _version(package: str) -> str | None:
    """As it was when this process first asked; every look lists all folders of packages."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_digest(module: str) -> str | None:
    """SHA-256 of the file that an imported module was read from; none where there is none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    except OSError:
        return None


def describe_processor() -> str:
    """What this machine's processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

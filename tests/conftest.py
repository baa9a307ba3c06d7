from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest
import torch


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not look at it, now (where
    that is a quarter of the time) or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test takes the power away, and a run waits for the disk a hundred times.

    What is no open file is refused as ever; tests of what is on the disk when have their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Every test starts from the same random state, on one thread (law 1 names the threads)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

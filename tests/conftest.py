from __future__ import annotations

import gc

import pytest
import torch


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """Every test starts from the same random state, on one thread (law 1 names the threads)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

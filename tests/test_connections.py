"""Which neighbours pass their features from GPU to GPU."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ppll.channels.base import SlotLayout
from ppll.connections import _Joints
from ppll.edges import Edge
from ppll.sections import RuntimeConfig

PROCESSOR = torch.device("cpu")


def devices_of_edge(name: str, *devices: str, transport: str = "auto") -> list[torch.device]:
    """Where messages of an edge between two ranks leave, and arrive."""
    runtime = RuntimeConfig(stages=2, devices=devices, transport=cast(Any, transport))
    job = cast(Any, SimpleNamespace(recipe=SimpleNamespace(runtime=runtime)))
    edge = Edge(name, 0, 1, SlotLayout({}), 4)
    return [_Joints(job, rank, None, ExitStack())._device(edge) for rank in (0, 1)]


def test_features_pass_between_gpus_each_on_its_own() -> None:
    expected = [torch.device("cuda", 1), torch.device("cuda", 0)]
    assert devices_of_edge("features", "cuda:1", "cuda:0") == expected


@pytest.mark.parametrize("devices", [("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cpu", "cpu")])
def test_a_processor_at_one_end_means_the_hosts_memory(devices: tuple[str, str]) -> None:
    assert devices_of_edge("features", *devices) == [PROCESSOR, PROCESSOR]


@pytest.mark.parametrize("name", ["late", "slow"])
def test_what_goes_beside_the_features_stays_on_the_host(name: str) -> None:
    assert devices_of_edge(name, "cuda:0", "cuda:0") == [PROCESSOR, PROCESSOR]


def test_shared_means_the_hosts_memory_between_gpus_too() -> None:
    found = devices_of_edge("features", "cuda:0", "cuda:0", transport="shared")
    assert found == [PROCESSOR, PROCESSOR]

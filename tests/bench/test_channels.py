"""What is measured between two processes, and that nothing is left of them."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppll import fork_server
from ppll.bench import channels
from ppll.bench.channels import ChannelRow, measure_channels
from ppll.bench.transports import TRANSPORTS
from ppll.channels.shared import MAX_CAPACITY
from ppll.errors import ChannelError, RecipeError

HUGE = 1 << 50
"""No machine has so much memory."""


@pytest.fixture
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fork_server.warm_up()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_a_row_has_medians_and_the_least_and_the_most() -> None:
    row = ChannelRow("shared", 4000, alone_s=(3e-5, 1e-5, 2e-5), streaming_s=(4e-6, 8e-6, 2e-6))
    tree = row.to_dict()
    assert json.loads(json.dumps(tree)) == tree
    assert tree == {
        "transport": "shared",
        "bytes": 4000,
        "microseconds": pytest.approx(20.0),
        "microseconds_min": pytest.approx(10.0),
        "microseconds_max": pytest.approx(30.0),
        "microseconds_per_message": pytest.approx(4.0),
        "microseconds_per_message_min": pytest.approx(2.0),
        "microseconds_per_message_max": pytest.approx(8.0),
        "gigabytes_per_second": pytest.approx(1.0),
        "gigabytes_per_second_min": pytest.approx(0.5),
        "gigabytes_per_second_max": pytest.approx(2.0),
    }


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.usefixtures("nothing_left_behind")
def test_every_transport_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_MOST_STREAMED", 100)
    seen: list[ChannelRow] = []
    rows = measure_channels([1, 1 << 20], capacity=3, repeats=2, seen=seen.append)
    assert rows == seen
    assert [(row.num_bytes, row.transport) for row in rows] == [
        (size, transport) for size in (1, 1 << 20) for transport in TRANSPORTS
    ]
    for row in rows:
        assert len(row.alone_s) == len(row.streaming_s) == 2
        assert min(row.alone_s + row.streaming_s) > 1e-6
        assert max(row.alone_s + row.streaming_s) < 0.1


@pytest.mark.processes
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_process_that_fails_ends_the_other() -> None:
    with pytest.raises(
        ChannelError, match="receiving process failed: ChannelError: cannot reserve"
    ):
        measure_channels([HUGE], transports=["shared"], repeats=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [4096, 0]}, r"sizes \[4096, 0\] .* give sizes of 1 byte or more"),
        ({"sizes": []}, r"sizes \[\]"),
        ({"capacity": 0}, "capacity 0 .* a capacity of 1 to 64"),
        ({"capacity": MAX_CAPACITY + 1}, "capacity 65 .* a capacity of 1 to 64"),
        ({"repeats": 0}, r"0 repeat\(s\): .* 1 repeat or more"),
        ({"transports": ["share"]}, "unknown transport 'share'. Did you mean 'shared'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        measure_channels(**{"sizes": [4096], **options})

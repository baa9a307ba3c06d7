"""Failures across hosts: a part of the matrix; ``python -m tests.host_faults`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppll import fork_server
from tests.faults import unbroken_hash
from tests.host_faults import HostCase, check
from tests.namespaces import network, reason_for_none

REASON = reason_for_none()
CASES = [
    HostCase(0, "FORWARD", "raise"),
    HostCase(0, "SAVE", "kill"),
    HostCase(0, "LEARN", "stop"),
    HostCase(0, "EVALUATE", "exit"),
    HostCase(1, "SEND", "kill"),
    HostCase(1, "SEND", "stop"),
    HostCase(1, "WRITE", "raise"),
    HostCase(2, "RECEIVE", "exit"),
    HostCase(2, "RECEIVE", "stop"),
    HostCase(2, "EVALUATE", "raise"),
    HostCase(2, "SAVE", "exit"),
    HostCase(3, "WRITE", "kill"),
    HostCase(3, "FORWARD", "kill"),
    HostCase(3, "EVALUATE", "stop"),
    HostCase(3, "LEARN", "exit"),
]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def expected_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    fork_server.warm_up()
    return unbroken_hash(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_every_host_is_told_and_the_run_goes_on_to_the_same_bits(
    index: int, tmp_path: Path, expected_hash: str
) -> None:
    with network(2) as hosts:
        check(CASES[index], hosts, tmp_path / "run", expected_hash, (1, 2, 4)[index % 3])

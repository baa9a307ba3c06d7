"""Failures: a part of the fault matrix; ``python -m tests.faults`` runs all of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from ppll import fork_server
from tests.faults import Case, check, unbroken_hash

pytestmark = pytest.mark.processes

CASES = [
    Case("first", "FORWARD", "raise"),
    Case("first", "SEND", "kill"),
    Case("first", "SAVE", "exit"),
    Case("first", "LEARN", "stop"),
    Case("middle", "LEARN", "raise"),
    Case("middle", "RECEIVE", "stop"),
    Case("middle", "WRITE", "kill"),
    Case("middle", "EVALUATE", "exit"),
    Case("middle", "SEND", "stop"),
    Case("last", "LEARN", "kill"),
    Case("last", "WRITE", "raise"),
    Case("last", "SAVE", "stop"),
    Case("last", "EVALUATE", "raise"),
    Case("last", "RECEIVE", "exit"),
]


@pytest.fixture(autouse=True, scope="module")
def running_fork_server() -> None:
    """It and torch's compiler keep a folder of their own for as long as this process lives."""
    fork_server.warm_up()
    importlib.import_module("torch._dynamo")


@pytest.fixture(scope="module")
def expected_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    return unbroken_hash(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_failure_is_named_and_the_run_goes_on_to_the_same_bits(
    index: int, tmp_path: Path, expected_hash: str
) -> None:
    check(CASES[index], tmp_path / "run", expected_hash, resumed_stages=(1, 2, 4)[index % 3])

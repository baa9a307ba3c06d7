"""Failures: a part of the fault matrix; ``python -m tests.faults`` runs all of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from ppll import fork_server
from tests.faults import Case, check, unbroken_hash

pytestmark = pytest.mark.processes
slow = pytest.mark.slow

CASES = [
    Case("first", "FORWARD", "raise"),
    Case("middle", "RECEIVE", "stop"),
    Case("middle", "EVALUATE", "exit"),
    Case("last", "SAVE", "stop"),
]
MORE = [
    Case("first", "SEND", "kill"),
    Case("last", "WRITE", "raise"),
    Case("first", "SAVE", "exit"),
    Case("middle", "WRITE", "kill"),
    Case("last", "LEARN", "kill"),
    Case("first", "LEARN", "stop"),
    Case("middle", "LEARN", "raise"),
    Case("middle", "SEND", "stop"),
    Case("last", "EVALUATE", "raise"),
    Case("last", "RECEIVE", "exit"),
]
"""Where, when and how are each among the others, too."""


@pytest.fixture(autouse=True, scope="module")
def running_fork_server() -> None:
    """It and torch's compiler keep a folder of their own for as long as this process lives."""
    fork_server.warm_up()
    importlib.import_module("torch._dynamo")


@pytest.fixture(scope="module")
def expected_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    return unbroken_hash(tmp_path_factory.mktemp("unbroken"))


PARAMETERS = [
    pytest.param(case, (1, 2, 4)[index % 3], id=str(case), marks=[slow] * (case in MORE))
    for index, case in enumerate([*CASES, *MORE])
]


@pytest.mark.parametrize(("case", "resumed_stages"), PARAMETERS)
def test_a_failure_is_named_and_the_run_goes_on_to_the_same_bits(
    case: Case, resumed_stages: int, tmp_path: Path, expected_hash: str
) -> None:
    check(case, tmp_path / "run", expected_hash, resumed_stages)

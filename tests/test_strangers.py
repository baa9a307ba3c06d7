"""Strangers on every port of a run on two hosts, from its start to its end."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tests.host_runs import train, train_here, weights
from tests.namespaces import PORT, network, outputs, reason_for_none

REASON = reason_for_none()
KINDS = ("noise", "zeros", "silence", "web")
"""``tests/channels/test_process_group.py`` has those who guess what gloo expects."""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


def test_strangers_on_every_port_change_no_bit(tmp_path: Path) -> None:
    longer = "--set=train.epochs=20"
    with network(2) as hosts:
        strangers = [
            hosts.start(host, sys.executable, "-m", "tests.stranger", hosts.address(host), kind)
            for host, kind in itertools.product(range(2), KINDS)
        ]
        agents = hosts.torchrun(train(tmp_path / "run", longer), 2)
        printed = outputs(agents, timeout_s=300)
        for stranger in strangers:
            assert stranger.poll() is None, "it called until the end"
            stranger.kill()
        found = [set(text.splitlines()) for text in outputs(strangers)]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    assert weights(tmp_path / "run") == train_here(tmp_path / "one", longer).weights_sha256
    for on_first, on_second in zip(found[: len(KINDS)], found[len(KINDS) :], strict=True):
        # The rendezvous and the store of the processes are the first host's; gloo's are on both.
        assert f"found port {PORT}" in on_first
        assert len(on_first) >= 3
        assert on_second

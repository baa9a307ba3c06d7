"""More stages and hosts: four and eight stages on two and four hosts, one of which vanishes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ppll
from ppll.testing import Fault
from tests.host_runs import EIGHT, train, train_here, weights
from tests.namespaces import network, outputs, reason_for_none, wait_for

REASON = reason_for_none()

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory: pytest.TempPathFactory) -> ppll.Result:
    return train_here(tmp_path_factory.mktemp("one") / "run", *EIGHT)


@pytest.mark.parametrize(
    ("num_hosts", "per_host"), [(2, 2), (2, 4), (4, 1), (4, 2)], ids=["2x2", "2x4", "4x1", "4x2"]
)
def test_any_number_of_hosts_trains_to_the_bits_of_one(
    num_hosts: int, per_host: int, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    with network(num_hosts) as hosts:
        agents = hosts.torchrun(train(tmp_path / "run", *EIGHT), per_host)
        printed = outputs(agents, timeout_s=300)
    assert [agent.returncode for agent in agents] == [0] * num_hosts, "\n".join(printed)
    assert weights(tmp_path / "run") == on_one_host.weights_sha256
    assert sum(text.count("weights_sha256") for text in printed) == 1


def test_the_three_hosts_that_are_left_go_on(tmp_path: Path, on_one_host: ppll.Result) -> None:
    """A host in the middle vanishes; its neighbours on both sides, and who is none, name it."""
    out = tmp_path / "run"
    command = train(out, *EIGHT, "--set=runtime.stall_timeout_s=10")
    with network(4) as hosts:
        # One stage waits at the step, so that the run is not over too soon.
        agents = hosts.torchrun(command, 2, **Fault(7, 30, how="hang").to_environment())
        wait_for(out / "checkpoints/step-00000010/manifest.json", timeout_s=200)
        hosts.set_link(2, "down")
        hosts.kill(2)
        for host in (0, 1, 3):
            text = outputs([agents[host]])[0]
            assert re.search(r"rank [45] .*: (no sign of life|the process died)", text), text
            assert "(10.77.0.3)" in text, text
        hosts.remove_processes()
        left = [hosts.agent(0, [*command, "--resume"], 2, num_hosts=3)]
        left += [hosts.agent(host, [*command, "--resume"], 2, num_hosts=3) for host in (1, 3)]
        printed = outputs(left, timeout_s=200)
    assert [agent.returncode for agent in left] == [0, 0, 0], "\n".join(printed)
    assert weights(out) == on_one_host.weights_sha256

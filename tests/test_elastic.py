"""Hosts that go and come while a run goes on: ``torchrun --nnodes 1:2``."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

import ppll
from ppll.testing import Fault
from tests.host_faults import LIMIT_S
from tests.host_runs import train, train_here, weights
from tests.namespaces import network, outputs, reason_for_none, wait_for

REASON = reason_for_none()
CONF = "last_call_timeout=3,keep_alive_interval=1"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory: pytest.TempPathFactory) -> ppll.Result:
    return train_here(tmp_path_factory.mktemp("one") / "run")


def starts(out: Path) -> list[tuple[int, int]]:
    """Generation and stages of every start."""
    lines = (out / "history.jsonl").read_text().splitlines()
    return [(entry["generation"], entry["num_stages"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize(("num_hosts", "vanishes"), [(2, 1), (3, 1)], ids=["2-to-1", "3-to-2"])
def test_the_hosts_that_are_left_go_on_by_themselves(
    num_hosts: int, vanishes: int, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    out, num_left = tmp_path / "run", num_hosts - 1
    command = train(out, "--set=runtime.stall_timeout_s=8")
    # One stage waits at the step, so that the run is not over too soon.
    fault = Fault(num_hosts - 1, 30, how="hang", generation=0).to_environment()
    with network(num_hosts) as hosts:
        options = ["--max-restarts=2"]
        span = f"{num_left}:{num_hosts}"
        agents = [
            hosts.agent(host, command, 1, options=options, num_hosts=span, conf=CONF, **fault)
            for host in range(num_hosts)
        ]
        wait_for(out / "checkpoints/step-00000020/manifest.json", timeout_s=120)
        hosts.set_link(vanishes, "down")
        hosts.kill(vanishes)
        printed = outputs([a for a in agents if a is not agents[vanishes]], timeout_s=300)
    everything = "\n".join(printed)
    assert re.search(rf"rank {vanishes} .*: (no sign of life|the process died)", printed[0])
    assert f"(10.77.0.{vanishes + 1})" in printed[0]
    assert weights(out) == on_one_host.weights_sha256, everything
    assert starts(out) == [(0, num_hosts), (1, num_left)]


@pytest.mark.parametrize(
    ("num_hosts", "environment"),
    [(2, {}), (3, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})],
    ids=["2-to-1", "3-to-2"],
)
def test_the_host_of_rank_0_may_vanish_where_it_is_not_that_of_the_rendezvous(
    num_hosts: int, environment: dict[str, str], tmp_path: Path, on_one_host: ppll.Result
) -> None:
    """Of two that are left, one would look for the processes' store where it was: torch's agents
    (2.13) keep its address as long as they share their store."""
    out, timeout_s = tmp_path / "run", 8
    command = train(out, f"--set=runtime.stall_timeout_s={timeout_s}")
    environment |= Fault(num_hosts - 1, 30, how="hang", generation=0).to_environment()
    options = {"options": ["--max-restarts=2"], "num_hosts": f"1:{num_hosts}", "conf": CONF}
    with network(num_hosts) as hosts:
        agents = [
            hosts.agent(host, command, 1, rendezvous=1, **options, **environment)
            for host in range(num_hosts)
        ]
        wait_for(out / "checkpoints/step-00000020/manifest.json", timeout_s=120)
        hosts.set_link(0, "down")
        hosts.kill(0)
        gone_s = time.monotonic()
        for agent in agents[1:]:
            assert any("torchrun's store at 10.77.0.1:" in line for line in agent.stdout or ())
            assert time.monotonic() - gone_s < timeout_s + LIMIT_S
        printed = outputs(agents[1:], timeout_s=300)
    assert [agent.returncode for agent in agents[1:]] == [0] * (num_hosts - 1), "\n".join(printed)
    assert weights(out) == on_one_host.weights_sha256
    assert starts(out) == [(0, num_hosts), (1, num_hosts - 1)]


def test_a_host_that_comes_later_takes_part(tmp_path: Path) -> None:
    """Torch's agents do not let it in while they share their store."""
    longer = "--set=train.epochs=40"
    out = tmp_path / "run"
    options = {"num_hosts": "1:2", "conf": CONF, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with network(2) as hosts:
        command = train(out, longer, "--resume")
        agents = [hosts.agent(0, command, 2, **options)]
        wait_for(out / "checkpoints/step-00000010/manifest.json", timeout_s=120)
        agents.append(hosts.agent(1, command, 2, **options))
        printed = outputs(agents, timeout_s=450)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    assert [num_stages for _, num_stages in starts(out)] == [2, 4]
    assert weights(out) == train_here(tmp_path / "one", longer).weights_sha256

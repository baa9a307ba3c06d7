"""Runs on several hosts: network namespaces that the tests make, each with an agent of torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppll
from ppll.testing import Fault
from tests.host_faults import check_nothing_is_left
from tests.host_runs import RECIPE, train, train_here, weights
from tests.namespaces import (
    Network,
    children,
    network,
    outputs,
    reason_for_none,
    torchrun_here,
    wait_for,
)

REASON = reason_for_none()
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.fixture
def two_hosts() -> Iterator[Network]:
    if REASON is not None:
        pytest.skip(REASON)
    with network(2) as made:
        yield made


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory: pytest.TempPathFactory) -> ppll.Result:
    return train_here(tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize("per_host", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_hosts_train_to_the_bits_of_one(
    per_host: int, two_hosts: Network, tmp_path: Path
) -> None:
    short = "--set=train.epochs=1"
    agents = two_hosts.torchrun(train(tmp_path / "run", short), per_host)
    first, second = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], first + second
    on_one_host = train_here(tmp_path / "one", short)
    assert weights(tmp_path / "run") == on_one_host.weights_sha256
    assert first.count("weights_sha256") == 1
    assert "accuracy" not in second  # One host's terminal is enough.


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "stages"), [("2", 2), ("[1,2,2,1]", 3)])
def test_replicas_on_two_hosts_have_the_bits_of_one(
    replicas: str, stages: int, two_hosts: Network, tmp_path: Path
) -> None:
    """Also where the first of those whose shards are joined is on the other host, and the second
    is not: with [1, 2, 2, 1] ranks 1 and 3 send to rank 2."""
    replicas = f"--set=train.replicas={replicas}"
    agents = two_hosts.torchrun(train(tmp_path / "two", replicas), 2)
    printed = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    options = [replicas, f"--stages={stages}", "--quiet"]
    alone = [sys.executable, "-m", *train(tmp_path / "one", *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(alone, check=True, capture_output=True, env=environment)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        pytest.param(
            "raise", r"15, in the learning step: .*InjectedFault: asked for", marks=pytest.mark.slow
        ),
        pytest.param(
            "kill",
            r"\d+, .*: the process died, on host \S+ \(10.77.0.2\)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "hang",
            r"15, in the learning step: no progress for 8 s .*, on host \S+ \(10.77.0.2\)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_host_hears_who_failed_and_why(
    how: str, cause: str, two_hosts: Network, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    """And any hosts go on with the run: here one. Of who says nothing any more, the last step is
    known that the board had."""
    fault = Fault(2, 15, how=how)  # type: ignore[arg-type]
    command = train(tmp_path / "run", "--set=runtime.stall_timeout_s=8")
    agents = two_hosts.torchrun(command, 2, **fault.to_environment())
    printed = outputs(agents)
    assert all(agent.returncode for agent in agents)
    for text in printed:
        assert len(re.findall(rf"rank 2 \(stage 2.*\) failed at step {cause}", text)) == 1, (
            "\n".join(printed)
        )
        assert f"Its newest checkpoint is in {tmp_path / 'run'}. The same with --resume" in text
    resumed = subprocess.run(
        [sys.executable, "-m", *train(tmp_path / "run", "--resume", "--stages=2", "--quiet")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "run") == on_one_host.weights_sha256


@pytest.mark.slow
def test_a_host_that_vanishes_is_named_and_the_others_go_on(
    two_hosts: Network, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    out = tmp_path / "run"
    command = train(out, "--set=runtime.stall_timeout_s=6")
    # One stage waits at the step, so that the run is not over too soon.
    agents = two_hosts.torchrun(command, 2, **Fault(3, 30, how="hang").to_environment())
    wait_for(out / "checkpoints/step-00000020/manifest.json")
    two_hosts.set_link(1, "down")
    first = outputs(agents[:1])[0]
    assert re.search(r"rank [23] .* on host \S+ \(10.77.0.2\)", first), first
    two_hosts.remove_processes()
    alone = two_hosts.agent(0, [*command, "--resume"], 2, num_hosts=1)
    printed = outputs([alone])[0]
    assert weights(out) == on_one_host.weights_sha256, printed


@pytest.mark.slow
def test_a_link_that_comes_back_costs_time_only(
    two_hosts: Network, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    out = tmp_path / "run"
    agents = two_hosts.torchrun(train(out), 2)
    wait_for(out / "checkpoints/step-00000010")
    two_hosts.set_link(1, "down")
    with pytest.raises(subprocess.TimeoutExpired):
        agents[0].wait(3)
    two_hosts.set_link(1, "up")
    printed = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    assert weights(out) == on_one_host.weights_sha256


@pytest.mark.slow
def test_one_agent_s_sigterm_saves_and_ends_the_run_of_all(
    two_hosts: Network, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    out = tmp_path / "run"
    slow = train(out, "--set=train.epochs=60")
    agents = two_hosts.torchrun(slow, 2)
    wait_for(out / "checkpoints/step-00000010")
    agents[1].terminate()
    printed = outputs(agents)
    assert all(agent.returncode for agent in agents), "\n".join(printed)
    assert "Interrupted: interrupted at step" in printed[0], printed[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        pytest.param(
            "--set=optimizer.lr=0.01",
            "was started with another recipe than rank 0",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--set=runtime.stages=3",
            "which make 2 stage(s), but runtime.stages = 3",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--set=train.replicas=3",
            "take a multiple of 3 processes: start as many",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hosts_that_were_asked_for_different_things_all_refuse(
    option: str, message: str, two_hosts: Network, tmp_path: Path
) -> None:
    commands = [train(tmp_path / "run"), train(tmp_path / "run", option)]
    agents = [two_hosts.agent(host, command, 1) for host, command in enumerate(commands)]
    for text in outputs(agents):
        assert message in text


@pytest.mark.slow
def test_a_folder_that_not_all_see_is_refused_by_all(two_hosts: Network, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = f'mount -t tmpfs none {tmp_path} && exec "$@"'
    hidden = ["unshare", "--mount", "sh", "-c", script, "sh"]
    command = train(out)
    agents = [
        two_hosts.agent(0, command, 1),
        two_hosts.agent(1, command, 1, before=hidden),
    ]
    for text in outputs(agents):
        assert re.search(r"rank 1 on host \S+ \(10.77.0.2\) does not see the run folder", text), (
            text
        )


@pytest.mark.slow
def test_a_start_that_follows_a_failure_goes_on(tmp_path: Path, on_one_host: ppll.Result) -> None:
    out = tmp_path / "run"
    fault = Fault(1, 25, generation=0).to_environment()
    agent = torchrun_here(["-m", *train(out)], "--max-restarts=1", **fault)
    printed = agent.communicate(timeout=120)[0]
    assert agent.returncode == 0, printed
    assert "--resume" not in printed
    assert weights(out) == on_one_host.weights_sha256
    lines = (out / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["generation"] for line in lines] == [0, 1]
    assert json.loads(lines[1])["step"] > 0


@pytest.mark.slow
def test_a_script_may_train_twice_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        "import sys, time, ppll\n"
        f"settings = {[s.removeprefix('--set=') for s in RECIPE[1:]]} + ['train.max_steps=5']\n"
        "for seed in (1, 2):\n"
        "    each = [*settings, f'train.seed={seed}', 'runtime.stall_timeout_s=2']\n"
        "    recipe = ppll.load_recipe('digits-resnet', each)\n"
        f"    trainer = ppll.Trainer(recipe, out=f'{tmp_path}/{{seed}}')\n"
        "    print('hash', trainer.fit().weights_sha256)\n"
        "try:\n"
        "    trainer.fit()\n"
        "except ppll.errors.UsageError as error:\n"
        "    print('refused', error)\n"
        "if sys.argv[1] == 'slow' and __import__('os').environ['RANK'] == '0':\n"
        "    time.sleep(6)\n"
        "recipe = ppll.load_recipe('digits-resnet', settings)\n"
        "ppll.Trainer(recipe, out=f'{sys.argv[0]}-again')  # which is never told to train\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    agent = torchrun_here([str(script), "slow"], TMPDIR=str(folder))
    printed = agent.communicate(timeout=120)[0]
    assert agent.returncode == 0, printed
    found = re.findall(r"hash (\w+)", printed)
    assert len(found) == 4
    assert len(set(found)) == 2
    assert printed.count("refused under torchrun a Trainer carries out one run") == 2
    assert not list(folder.glob("ppll-*"))


@pytest.mark.slow
def test_data_that_the_first_process_alone_has_is_that_of_all(tmp_path: Path) -> None:
    script = tmp_path / "given.py"
    script.write_text(
        "import os, numpy as np, ppll\n"
        "images = np.arange(24 * 64, dtype=np.uint8).reshape(24, 1, 8, 8)\n"
        "part = (images, np.arange(24) % 3)\n"
        "is_first = os.environ['RANK'] == '0'\n"
        "data = ppll.Dataset.from_arrays(train=part, test=part) if is_first else None\n"
        f"settings = {[s.removeprefix('--set=') for s in RECIPE[1:]]}\n"
        "for epochs in (1, 2):\n"
        "    each = [f'train.epochs={epochs}', 'schedule.name=constant', 'data.batch_size=8']\n"
        "    each = [*settings, *each]\n"
        "    recipe = ppll.load_recipe('digits-resnet', each)\n"
        f"    out = '{tmp_path}/run'\n"
        "    result = ppll.Trainer(recipe, data=data, out=out, resume=True).fit()\n"
        "print('ended', result.epoch, ppll.load(out).facts.is_given)\n"
    )
    agent = torchrun_here([str(script)])
    printed = agent.communicate(timeout=120)[0]
    assert agent.returncode == 0, printed
    assert printed.count("ended 2 True") == 2


@pytest.mark.slow
def test_a_first_process_that_is_stopped_is_named(tmp_path: Path) -> None:
    command = ["-m", *train(tmp_path / "run", "--set=runtime.stall_timeout_s=5")]
    agent = torchrun_here(command, **Fault(0, 15, how="stop").to_environment())
    printed = agent.communicate(timeout=120)[0]  # the agent waits 30 s before it kills
    assert agent.returncode
    assert re.search(r"rank 0 \(stage 0.*no sign of life for", printed), printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("killed", [{0}, {0, 1}, {1, 2}], ids=str)
def test_whoever_of_a_host_is_killed_the_others_say_so_once(
    killed: set[int], tmp_path: Path
) -> None:
    """As memory that runs out kills several at a time. Nothing of theirs stays behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = ["-m", *train(tmp_path / "run", "--set=train.epochs=100000")]
    agent = torchrun_here(command, per_host=4, TMPDIR=str(temporary))
    wait_for(tmp_path / "run/checkpoints/step-00000010/manifest.json")
    ranks = {environment_of(process)["RANK"]: process for process in children(agent.pid)}
    for rank in killed:
        os.kill(ranks[str(rank)], signal.SIGKILL)
    printed = agent.communicate(timeout=100)[0]
    causes = re.findall(r"rank (\d) .* failed at step .*: the process died", printed)
    assert len(causes) == 1, printed
    assert int(causes[0]) in killed, printed
    check_nothing_is_left(temporary)


def environment_of(process: int) -> dict[str, str]:
    entries = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@pytest.fixture
def agent_of_one_host(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent without a network, whose run does not end by itself."""
    process = torchrun_here(["-m", *train(tmp_path / "run", "--set=train.epochs=100000")])
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    "whom", ["agent", pytest.param("agent and processes", marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_run_with_a_checkpoint(
    whom: str, agent_of_one_host: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Processes of a control group get it from its sender and from the agent."""
    wait_for(tmp_path / "run/checkpoints/step-00000010/manifest.json")
    ranks = children(agent_of_one_host.pid) if whom != "agent" else set()
    agent_of_one_host.send_signal(signal.SIGTERM)
    for rank in ranks:
        os.kill(rank, signal.SIGTERM)
    printed = agent_of_one_host.communicate(timeout=60)[0]
    found = re.search(r"Interrupted: interrupted at step (\d+); saved in", printed)
    assert found, printed
    assert (tmp_path / f"run/checkpoints/step-{int(found[1]):08}/manifest.json").exists()


@pytest.mark.slow
def test_agents_of_two_hosts_start_again_together(
    two_hosts: Network, tmp_path: Path, on_one_host: ppll.Result
) -> None:
    fault = Fault(2, 25, generation=0).to_environment()
    agents = [
        two_hosts.agent(host, train(tmp_path / "run"), 2, options=["--max-restarts=2"], **fault)
        for host in range(2)
    ]
    printed = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    assert weights(tmp_path / "run") == on_one_host.weights_sha256


@pytest.mark.slow
def test_whose_rendezvous_is_gone_says_where_to_look(two_hosts: Network, tmp_path: Path) -> None:
    """The only process of its host is killed, and with its agent goes the store."""
    fault = Fault(0, 15, how="kill").to_environment()
    printed = outputs(two_hosts.torchrun(train(tmp_path / "run"), 1, **fault))[1]
    assert re.search(r"rank 0 .*the process died|what torchrun printed there", printed), printed

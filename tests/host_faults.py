"""The fault matrix across hosts: four stages on two hosts, which rank fails, when, and how.

Every case must be named once on every host, in time, and resume on one host to the bits of a run
that was never broken. ``tests/test_host_faults.py`` runs a part of it; all of it is one command
(Linux, root; about half an hour on two cores)::

    python -m tests.host_faults
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import ppll
from ppll import fork_server
from ppll.testing import Fault
from tests.faults import DOING, STEPS, How, recipe, unbroken_hash
from tests.namespaces import Network, network, reason_for_none

RANKS = range(4)
"""The first host's two send to each other and over the link to the second host's."""
CAUSES = {
    "raise": "InjectedFault: asked for",
    "exit": r"the process died, on host \S+ \({}\)",
    "kill": r"the process died, on host \S+ \({}\)",
    "stop": r"no (sign of life for|progress for) \d+ s .*, on host \S+ \({}\)",
}
STALL_TIMEOUT_S = 8.0
LIMIT_S = 10.0
"""Of a death it may take so long to tell who is silent from who is busy."""


@dataclass(frozen=True)
class HostCase:
    """One failure: which of four ranks, what it does by then, and how it fails."""

    rank: int
    when: str
    how: How

    def __str__(self) -> str:
        return f"{self.rank}-{self.when}-{self.how}"


MATRIX = [
    HostCase(rank, when, how)
    for rank, when, how in itertools.product(RANKS, STEPS, get_args(How))
    if (rank, when) != (3, "SEND")
]


def check(case: HostCase, net: Network, out: Path, expected_hash: str, stages: int) -> float:
    """Run a case on two hosts, look at what each was told, and resume it on one.

    Returns:
        Seconds from the failure to the last host's report; of a hang, those beyond its time-out.
    """
    stamp, late_s = out.with_suffix(".stamp"), 0.0
    fault = Fault(case.rank, STEPS[case.when], case.when, case.how, stamp=str(stamp))
    command = ["ppll", "train", str(_recipe_file(case, out)), f"--out={out}"]
    temporary = out.with_suffix(".tmp")
    temporary.mkdir()
    agents = net.torchrun(command, 2, TMPDIR=str(temporary), **fault.to_environment())
    try:
        with ThreadPoolExecutor(len(agents)) as pool:
            told = list(pool.map(_told, agents))
        check_nothing_is_left(temporary)
    finally:
        net.remove_processes()  # Agents wait half a minute for a process that is stopped.
    _check_messages(case, net, [message for message, _ in told])
    late_s = max(at_s for _, at_s in told) - float(stamp.read_text())
    late_s -= STALL_TIMEOUT_S if case.how == "stop" else 0
    assert late_s < LIMIT_S, f"reported {late_s:.2f} s after the failure"
    resumed = ppll.Trainer(recipe(stages=stages), out=out, resume=True).fit()
    assert resumed.weights_sha256 == expected_hash, "other weights than an unbroken run"
    return late_s


def _recipe_file(case: HostCase, out: Path) -> Path:
    timeout = {"stall_timeout_s": STALL_TIMEOUT_S} if case.how == "stop" else {}
    path = out.with_suffix(".toml")
    path.write_text(recipe(**timeout).to_toml(), encoding="utf-8")
    return path


def check_nothing_is_left(temporary: Path, timeout_s: float = 5.0) -> None:
    """Fail if a folder for temporary files still holds some of ours, once processes have left."""
    deadline = time.monotonic() + timeout_s
    while left := [path for path in temporary.iterdir() if "torch" not in path.name]:
        assert time.monotonic() < deadline, f"files left behind: {left}"
        time.sleep(0.05)


def _told(agent: subprocess.Popen[str]) -> tuple[str, float]:
    """What an agent and its processes print until the agent's own report, and when they said who
    failed."""
    assert agent.stdout is not None
    lines, at_s = [], 0.0
    for line in agent.stdout:
        lines.append(line)
        if " failed at step " in line:
            at_s = at_s or time.monotonic()
        if "closing signal SIGTERM" in line and at_s:
            break
    return "".join(lines), at_s


def _check_messages(case: HostCase, net: Network, messages: list[str]) -> None:
    cause = CAUSES[case.how].format(re.escape(net.address(case.rank // 2)))
    where = r".*"  # Of who says nothing any more, the board has what was there a second ago.
    if case.how == "raise" and case.when != "WRITE":
        where = f"{STEPS[case.when]}, {DOING[case.when]}: .*"
    rank = case.rank
    for message in messages:
        assert message.count(" failed at step ") == 1, "\n".join(messages)
        pattern = rf"rank {rank} \(stage {rank}.*\) failed at step {where}{cause}"
        assert re.search(pattern, message), "\n".join(messages)


def main() -> int:
    """Run the whole matrix and print a line a case; the number of cases that do not hold."""
    if (reason := reason_for_none()) is not None:
        raise SystemExit(reason)
    fork_server.warm_up()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="ppll-faults-") as name, network(2) as net:
        folder = Path(name)
        expected_hash = unbroken_hash(folder)
        for index, case in enumerate(MATRIX):
            try:
                late_s = check(case, net, folder / str(case), expected_hash, (1, 2, 4)[index % 3])
                print(f"{case}: told after {late_s:.2f} s, resumed to the same bits", flush=True)
            except Exception:
                bad += 1
                print(f"{case}: DOES NOT HOLD\n{traceback.format_exc()}", flush=True)
    print(f"{len(MATRIX) - bad} of {len(MATRIX)} cases hold")
    return bad


if __name__ == "__main__":
    sys.exit(min(main(), 1))

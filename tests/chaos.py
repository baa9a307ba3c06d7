"""Kill random processes of a running job, again and again; the result must be an unbroken run's.

The job trains four blocks on four processes with ``--max-restarts``. At random moments, also while
it starts, one of its processes gets SIGKILL: a rank, the fork server, multiprocessing's resource
tracker, or the launcher itself, after which nothing may be left five seconds later and the job is
started again with ``--resume``.

    python -m tests.chaos --kills 100
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_ORPHANS_S = 5.0


def main() -> int:
    options = _parse()
    with tempfile.TemporaryDirectory(prefix="ppll-chaos-") as name:
        folder = Path(name)
        subprocess.run(_command(options, folder / "unbroken", "--stages", "1"), check=True)
        chaos = Chaos(options, folder / "run")
        chaos.run()
        hashes = [
            json.loads((folder / run / "result.json").read_text())["weights_sha256"]
            for run in ("unbroken", "run")
        ]
        starts = (folder / "run" / "history.jsonl").read_text().count("\n")
    print(f"killed {dict(chaos.killed)}, {starts} starts")
    print(f"unbroken {hashes[0]}\nkilled   {hashes[1]}")
    print("the same" if hashes[0] == hashes[1] else "NOT THE SAME")
    return int(hashes[0] != hashes[1])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20_000, help="length of the run")
    parser.add_argument("--longest-pause-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _command(options: argparse.Namespace, out: Path, *arguments: str) -> list[str]:
    settings = {
        "data.name": "synthetic",
        "data.shape": [1, 8, 8],
        "data.num_train": 200,
        "data.num_test": 20,
        "data.batch_size": 10,
        "model.depth": 14,
        "model.width": 4,
        "train.epochs": options.steps,
        "train.max_steps": options.steps,
        "train.evaluate_every": 50,
        "checkpoint.every_steps": 25,
    }
    pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    start = [sys.executable, "-m", "ppll", "train", "digits-resnet", "--quiet"]
    return [*start, "--out", str(out), *arguments, *pairs]


class Chaos:
    """A job and what has been killed of it."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.killed: collections.Counter[str] = collections.Counter()
        self._random = random.Random(options.seed)
        self._options = options
        self._command = _command(
            options, out, "--stages", "4", "--max-restarts", "100000", "--resume"
        )
        self._job = self._start()

    def run(self) -> None:
        """Kill as often as is asked for, then let the job come to its end."""
        while self.killed.total() < self._options.kills:
            time.sleep(self._random.uniform(0, self._options.longest_pause_s))
            if self._job.poll() is not None:
                raise RuntimeError(
                    f"the job ended with code {self._job.returncode} after "
                    f"{self.killed.total()} kills: give it more --steps, if that was 0."
                )
            self._kill_one()
        if self._job.wait():
            raise RuntimeError(f"the job ended with code {self._job.returncode}")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, start_new_session=True)

    def _kill_one(self) -> None:
        processes = _session(self._job.pid)
        pid = self._random.choice(sorted(processes))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed[processes[pid]] += 1
        print(f"{self.killed.total()}: killed {processes[pid]} {pid}", flush=True)
        if pid == self._job.pid:
            self._job.wait()
            self._wait_for_orphans()
            self._job = self._start()

    def _wait_for_orphans(self) -> None:
        deadline = time.monotonic() + _ORPHANS_S
        while left := _session(self._job.pid):
            if time.monotonic() > deadline:
                details = "\n".join(f"{role} {_details(pid)}" for pid, role in left.items())
                raise RuntimeError(f"still there after {_ORPHANS_S:g} s:\n{details}")
            time.sleep(0.05)


def _session(session: int) -> dict[int, str]:
    """The living processes of a session, and what each is."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, its_session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            if int(its_session) == session and state != "Z":
                found[int(process.name)] = _role(process, session)
    return found


def _details(pid: int) -> str:
    process = Path("/proc", str(pid))
    with suppress(OSError):
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return f"{(process / 'stat').read_text()[:40]} {command}"
    return f"{pid} (gone)"


def _role(process: Path, session: int) -> str:
    command = (process / "cmdline").read_bytes()
    if int(process.name) == session:
        return "launcher"
    if b"resource_tracker" in command:
        return "resource tracker"
    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return "fork server" if parent == session else "rank"


if __name__ == "__main__":
    sys.exit(main())

"""Hosts for tests: network namespaces of this machine, joined by a switch (Linux, root); and
torchrun on this one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PORT = 29400  # every network is its own, so nobody else has it


def reason_for_none() -> str | None:
    """Why this machine can make no hosts; none where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"network namespaces need iproute2, found no {missing[0]}"
    name = f"ppll-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Network:
    """Namespaces ``0`` to ``num_hosts - 1`` with an address each, behind one switch."""

    def __init__(self, num_hosts: int) -> None:
        self.num_hosts = num_hosts
        self._name = f"ppll{os.getpid()}"
        self._started: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        _ip("netns", "add", self._switch)
        self._in(self._switch, "ip", "link", "add", "sw", "type", "bridge")
        self._in(self._switch, "ip", "link", "set", "sw", "up")
        for host in range(self.num_hosts):
            name, port = self._host(host), f"port{host}"
            _ip("netns", "add", name)
            _ip("link", "add", port, "netns", self._switch, "type", "veth", "peer", "name", "eth0",
                "netns", name)  # fmt: skip
            self._in(self._switch, "ip", "link", "set", port, "master", "sw", "up")
            self._in(name, "ip", "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._in(name, "ip", "link", "set", "eth0", "up")
            self._in(name, "ip", "link", "set", "lo", "up")

    def remove(self) -> None:
        self.remove_processes()
        for name in [self._switch, *map(self._host, range(self.num_hosts))]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def remove_processes(self) -> None:
        for host in range(self.num_hosts):
            self.kill(host)
        for process in self._started:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def kill(self, host: int) -> None:
        """End everything that runs on a host, what is stopped or left alone included.

        A process that is killed holds what it holds, such as a run's folder, a moment longer.
        """
        deadline = time.monotonic() + 10
        while (running := self._running(host)) and time.monotonic() < deadline:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _running(self, host: int) -> list[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self._host(host)], capture_output=True, text=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def shape(self, megabits: int) -> None:
        """Let every link carry no more than so many megabits per second, each way."""
        rate = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "200ms"]
        for host in range(self.num_hosts):
            self._in(self._switch, "tc", "qdisc", "replace", "dev", f"port{host}", "root", "tbf",
                     *rate)  # fmt: skip
            self._in(
                self._host(host), "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate
            )

    def set_link(self, host: int, state: str) -> None:
        """Pull a host's cable (``"down"``) or put it back (``"up"``)."""
        self._in(self._switch, "ip", "link", "set", f"port{host}", state)

    def sent_bytes(self, host: int) -> int:
        """Bytes that a host has put on its link so far."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        return int(self._in(self._host(host), "cat", path))

    def listening(self, host: int) -> str:
        """What listens on a host, as ``ss`` has it."""
        return self._in(self._host(host), "ss", "-tlnH")

    def start(self, host: int, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command on a host; what it prints comes through one pipe."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._host(host), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self._started.append(process)
        return process

    def torchrun(
        self, command: Sequence[str], per_host: int, **environment: str
    ) -> list[subprocess.Popen[str]]:
        """Start ``python -m COMMAND`` under torchrun on every host."""
        return [
            self.agent(host, command, per_host, **environment) for host in range(self.num_hosts)
        ]

    def agent(
        self,
        host: int,
        command: Sequence[str],
        per_host: int,
        before: Sequence[str] = (),
        options: Sequence[str] = (),
        num_hosts: int | str | None = None,
        conf: str = "",
        rendezvous: int = 0,
        **environment: str,
    ) -> subprocess.Popen[str]:
        """Start torchrun on one host of so many (``"1:2"``: at least, at most), in a command that
        comes before it if there is one; ``conf`` goes to the rendezvous, which a host keeps."""
        return self.start(
            host,
            *before,
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes={num_hosts or self.num_hosts}",
            f"--nproc-per-node={per_host}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.address(rendezvous)}:{PORT}",
            # Names tell nothing here.
            f"--rdzv-conf=is_host={int(host == rendezvous)}{conf and ','}{conf}",
            f"--rdzv-id={self._name}",
            f"--local-addr={self.address(host)}",
            *options,
            *("-m", *command),
            **environment,
        )

    def _in(self, name: str, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", name, *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    @property
    def _switch(self) -> str:
        return f"{self._name}-sw"

    def _host(self, host: int) -> str:
        return f"{self._name}-{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def network(num_hosts: int) -> Iterator[Network]:
    """Hosts that are gone afterwards, with everything that runs on them."""
    made = Network(num_hosts)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def torchrun_here(
    command: Sequence[str],
    *options: str,
    per_host: int = 2,
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    """Start torchrun without a network; what it and its processes print comes through one pipe."""
    return subprocess.Popen(
        [
            *before,
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={per_host}", *options, *command),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def children(process: int) -> set[int]:
    """The processes that a process has started (Linux)."""
    with suppress(OSError):
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
        return {int(child) for child in listed.split()}
    return set()


def outputs(processes: Sequence[subprocess.Popen[str]], timeout_s: float = 100.0) -> list[str]:
    """What all processes have printed when they have ended."""
    deadline = time.monotonic() + timeout_s
    return [p.communicate(timeout=max(0.0, deadline - time.monotonic()))[0] for p in processes]


def wait_for(path: Path, timeout_s: float = 60.0) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)

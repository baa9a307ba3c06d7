"""Whom a run trusts: its own processes with its secret, and no file that could be a program."""

from __future__ import annotations

import ast
import importlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import ppll
from ppll import fork_server
from ppll.channels import sockets
from ppll.checkpoints.checkpoint import step_folder, write_block
from ppll.checkpoints.recovery import newest_whole
from ppll.checkpoints.saving import Saver, SaveRules
from ppll.claim import Claim
from ppll.errors import ChannelTimeout, CheckpointError
from ppll.launching.launch import Launcher
from ppll.status import Status
from ppll.stream import EVERYTHING_SAVED
from tests.faults import recipe
from tests.interleaving import MadeUpBatches, blueprint_of, built_blocks, small_recipe

# Nothing that is loaded is unpickled

MODULES = sorted(Path(ppll.__file__).parent.rglob("*.py"))
UNPICKLERS = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code"}
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "torch.package", "pickle.load"}
LOADERS |= {"pickle.loads", "pickle.Unpickler", "numpy.load", "np.load", "pandas.read_pickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
MAY_PICKLE = {"first_values.py": {"pickle.dumps"}}
"""Whether a network can be handed to a process is found out by trying."""


def suspicious(tree: ast.AST) -> Iterator[str]:
    """What a file would unpickle with, or run text with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in UNPICKLERS)
            yield from (f"{a.name} as {a.asname}" for a in node.names if a.asname == "pickle")
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module).partition(".")[0]
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & LOADERS
            if module in UNPICKLERS | {"pickle"}:
                yield str(node.module)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in LOADERS or name.startswith(("pickle.", "_pickle.")):
                yield name
        elif isinstance(node, ast.Name) and node.id in RUNNERS and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            yield node.arg


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_nothing_unpickles_or_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert set(suspicious(tree)) == MAY_PICKLE.get(path.name, set())


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "pickle.loads(b)",
        "from pickle import loads",
        "import dill",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "np.load(f)",
        "eval(text)",
        "f = exec",
        "from torch import load",
        "import yaml.reader",
        "__import__(name)",
    ],
)
def test_the_test_sees_what_it_looks_for(code: str) -> None:
    assert set(suspicious(ast.parse(code)))


def test_harmless_code_is_no_suspect() -> None:
    code = "model.eval(); re.compile(x); json.loads(x); safetensors.torch.load(x)"
    assert not set(suspicious(ast.parse(code)))


# A run of two stages on one host


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the launcher puts its sockets; nothing may be left in it."""
    fork_server.warm_up()
    importlib.import_module("torch._dynamo")
    # Not below tmp_path: the path of a socket may have some hundred bytes only.
    folder = Path(tempfile.mkdtemp(prefix="t"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    yield folder
    assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.fixture(scope="module")
def expected_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run that nobody disturbs comes to."""
    return ppll.Trainer(recipe(), out=tmp_path_factory.mktemp("alone") / "run").fit().weights_sha256


def internet_sockets() -> set[str]:
    """Inodes of all sockets of this machine that have a port."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6"):
        table = Path("/proc/net", name)
        rows = table.read_text().splitlines()[1:] if table.exists() else []
        found |= {row.split()[9] for row in rows}
    return found


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets; none where it is gone."""
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            name = os.readlink(link)
            if name.startswith("socket:["):
                found.add(name.removeprefix("socket:[").removesuffix("]"))
    except OSError:
        pass
    return found


def descendants() -> set[int]:
    """The processes that this one has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def test_a_port_would_be_seen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert sockets_of(os.getpid()) & internet_sockets()


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_port_is_open_while_two_stages_train(
    replicas: int, tmp_path: Path, temporary_folder: Path
) -> None:
    before = sockets_of(os.getpid())
    most_processes, steps, with_ports = 0, set(), set()

    def watch(statuses: Sequence[Status]) -> None:
        nonlocal most_processes
        others = descendants()
        most_processes = max(most_processes, len(others))
        steps.update(status.step for status in statuses)
        ours = {inode for pid in others for inode in sockets_of(pid)}
        ours |= sockets_of(os.getpid()) - before
        with_ports.update(ours & internet_sockets())

    shared = recipe(stages=2).with_settings([f"train.replicas={replicas}"])
    ppll.Trainer(shared, out=tmp_path / "run", watch=watch).fit()
    assert most_processes >= 1 + 2 * replicas  # the fork server and the ranks
    assert len(steps) > 1
    assert with_ports == set()


SPEECHES = {"wrong secret": bytes(32), "no secret": b"", "part of one": b"\1", "long": bytes(5000)}


class Strangers:
    """Come to every socket of a run before those who belong there; they know no secret."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guests: dict[str, socket.socket] = {}
        self.modes: set[int] = set()
        self.kinds: set[bool] = set()
        accept = Launcher._accept

        def accept_after_us(launcher: Launcher, listener: socket.socket, rank: int) -> None:
            folder = launcher._folder
            self.modes.add(stat.S_IMODE(folder.stat().st_mode))
            self.kinds |= {stat.S_ISSOCK(p.stat().st_mode) for p in folder.glob("*-[0-9]")}
            self.visit(folder / f"launcher-{rank}")
            if rank == 0:
                # Rank 0 connects to rank 1 when it was welcomed, so its line waits for us.
                if not (folder / "features-0-1").exists():
                    time.sleep(0.01)
                    return
                self.visit(folder / "features-0-1")
            accept(launcher, listener, rank)

        monkeypatch.setattr(Launcher, "_accept", accept_after_us)

    def visit(self, path: Path) -> None:
        for name, words in SPEECHES.items():
            if f"{path.name}, {name}" not in self.guests:
                guest = sockets.connect(path, words, timeout_s=5)
                self.guests[f"{path.name}, {name}"] = guest

    def heard(self) -> dict[str, bytes]:
        """What each was told, without what it was told it for."""
        found = {}
        for name, guest in self.guests.items():
            with guest:
                guest.settimeout(5)
                try:
                    found[name] = guest.recv(100)
                except ConnectionError:
                    found[name] = b""
        return found


@pytest.mark.processes
def test_strangers_are_refused_and_the_run_ends_right(
    tmp_path: Path,
    temporary_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected_hash: str,
) -> None:
    strangers = Strangers(monkeypatch)
    result = ppll.Trainer(recipe(stages=2), out=tmp_path / "run").fit()
    assert result.weights_sha256 == expected_hash
    assert strangers.modes == {0o700}
    assert strangers.kinds == {True}
    places = ("launcher-0", "launcher-1", "features-0-1")
    assert strangers.heard() == {f"{p}, {name}": b"" for p in places for name in SPEECHES}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_does_not_come_in() -> None:
    nobody, secret = 65534, bytes(range(32))
    folder = Path(tempfile.mkdtemp(prefix="t"))
    with sockets.listen(folder / "s") as listener:

        def call_as_nobody(caller: socket.socket) -> None:
            os.seteuid(nobody)
            try:
                caller.connect(os.fspath(folder / "s"))
                caller.sendall(secret)
            finally:
                os.seteuid(0)

        with socket.socket(socket.AF_UNIX) as caller, pytest.raises(PermissionError):
            call_as_nobody(caller)
        # Even where somebody opens the folder, the kernel says who calls.
        folder.chmod(0o711)
        (folder / "s").chmod(0o777)
        with socket.socket(socket.AF_UNIX) as caller:
            call_as_nobody(caller)
            with pytest.raises(ChannelTimeout):
                sockets.accept(listener, secret, 0.1)
        with sockets.connect(folder / "s", secret, 5) as caller:
            sockets.accept(listener, secret, 5).close()
            assert caller.recv(1) == b""
    folder.rmdir()


# A start that another has taken over from


@pytest.fixture
def blocks():
    return built_blocks(blueprint_of(small_recipe(split_blocks=2), MadeUpBatches()))


def saver_of(run: Path, claim: Claim, *, commits: bool = True) -> Saver:
    rules = SaveRules(run / "checkpoints", 2, {"train": {"seed": 1}}, keep=1, claim=claim)
    saver = Saver(rules, commits=commits, saved_step=0)
    saver.hear(EVERYTHING_SAVED)
    return saver


def test_an_older_start_writes_nothing(tmp_path: Path, blocks) -> None:
    saver = saver_of(tmp_path, Claim.take(tmp_path))
    Claim.take(tmp_path)
    saver.save(3, blocks)
    with pytest.raises(CheckpointError, match="another start of this run has taken over"):
        saver.finish()
    saver.close()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("taken_by", ["another start", "nobody, it is gone", "noise", "a folder"])
def test_an_older_start_does_not_commit_what_it_has_written(
    tmp_path: Path, blocks, taken_by: str
) -> None:
    claim = Claim.take(tmp_path)
    first, last = saver_of(tmp_path, claim, commits=False), saver_of(tmp_path, claim)
    last.hear(0)
    for saver, part in ((first, blocks[:1]), (last, blocks[1:])):
        saver.save(3, part)
        saver.finish()
    if taken_by == "another start":
        Claim.take(tmp_path)
    else:
        (tmp_path / "claim").unlink()
        if taken_by == "noise":
            (tmp_path / "claim").write_bytes(b"\xff\xfe")
        elif taken_by == "a folder":
            (tmp_path / "claim").mkdir()
    with pytest.raises(CheckpointError, match=r"taken over|claim is gone"):
        last.hear(first.saved_step)
    for saver in (first, last):
        saver.close()
    assert newest_whole(tmp_path / "checkpoints") is None


def test_an_older_start_does_not_prune_or_replace_what_a_newer_one_committed(
    tmp_path: Path, blocks
) -> None:
    old = saver_of(tmp_path, Claim.take(tmp_path))
    new = saver_of(tmp_path, Claim.take(tmp_path))
    for step in (3, 6):
        new.save(step, blocks)
        new.finish()
    expected = {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*.*")}
    with torch.no_grad():
        for _, parameter in blocks[0].modules.named_parameters():
            parameter.add_(1)
    for step in (6, 9):
        old.save(step, blocks)
        with pytest.raises(CheckpointError, match="taken over"):
            old.finish()
    for saver in (old, new):
        saver.close()
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*.*")} == expected
    assert newest_whole(tmp_path / "checkpoints").step == 6


def test_what_an_older_start_wrote_in_the_last_moment_is_not_loaded(tmp_path: Path, blocks) -> None:
    """Its files may get into the folder of a checkpoint; then the digests differ."""
    saver = saver_of(tmp_path, Claim.take(tmp_path))
    for step in (0, 3):
        saver.save(step, blocks)
        saver.finish()
    saver.close()
    other = {name: tensor + 1 for name, tensor in blocks[0].modules.named_tensors()}
    write_block(step_folder(tmp_path / "checkpoints", 3), 3, 0, other, {})
    found = newest_whole(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 0
    assert "block-00.safetensors is damaged" in found.passed_over[0]

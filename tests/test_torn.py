"""Checkpoints that are damaged, or that were being written when the disk or the power failed.

In every case the newest whole checkpoint is found, what was passed over is named with the reason,
and nothing that is damaged is loaded.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll.checkpoints.checkpoint import commit, is_committed, step_folder, write_block
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import newest_whole, prune, set_aside
from ppll.errors import CheckpointError

NUM_BLOCKS = 2
STEPS = (0, 3, 6)
RECIPE: dict[str, dict[str, Any]] = {"optimizer": {"lr": 0.1}, "train": {"seed": 1, "epochs": 3}}
SHARDS = [f"block-0{i}{end}.safetensors" for i in range(NUM_BLOCKS) for end in ("", ".optimizer")]
RECORDS = [f"block-0{i}.json" for i in range(NUM_BLOCKS)]
"""Needed until the manifest is written, and not read afterwards."""


def weights_of(step: int, index: int) -> dict[str, torch.Tensor]:
    return {f"{index}.weight": torch.full((2, 2), step + 0.5), f"{index}.n": torch.tensor(step)}


def write_blocks(checkpoints: Path, step: int) -> Path:
    folder = step_folder(checkpoints, step)
    for index in range(NUM_BLOCKS):
        state = {f"{index}.weight.momentum": torch.full((2, 2), -step - 1.0)}
        write_block(folder, step, index, weights_of(step, index), state)
    return folder


def write(checkpoints: Path, step: int) -> Path:
    folder = write_blocks(checkpoints, step)
    commit(folder, step, NUM_BLOCKS, RECIPE)
    return folder


def found_step(checkpoints: Path, passed_over: str | None = None) -> int:
    """The newest whole checkpoint's step, of which every tensor is what was written."""
    found = newest_whole(checkpoints)
    assert found is not None
    weights = found.reader.all_weights()
    expected = weights_of(found.step, 0) | weights_of(found.step, 1)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert found.reader.manifest.recipe == RECIPE
    if passed_over is None:
        assert all("was not finished" in reason for reason in found.passed_over)
    else:
        (reason,) = found.passed_over
        assert passed_over in reason
    return found.step


# Files of a committed checkpoint that are not what they were


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints; whoever changes a file puts it back."""
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in STEPS:
        write(checkpoints, step)
    return checkpoints


@contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    contents = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def spread(size: int, number: int) -> list[int]:
    """Some positions from the first to the last."""
    return sorted({i * (size - 1) // (number - 1) for i in range(number)})


def newest(sound: Path, name: str) -> Path:
    return step_folder(sound, STEPS[-1]) / name


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_the_newest_is_found(sound: Path) -> None:
    assert found_step(sound) == 6


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_cut_short_is_named(sound: Path, name: str) -> None:
    path = newest(sound, name)
    with put_back(path):
        content = path.read_bytes()
        for size in spread(len(content), 8):
            path.write_bytes(content[:size])
            reason = f"{path} is damaged: it has {size} bytes, not {len(content)}."
            assert found_step(sound, reason) == 3
        path.write_bytes(content + b"\0")
        assert found_step(sound, f"{path} is damaged: it has {len(content) + 1} bytes") == 3


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_with_a_flipped_bit_is_named(sound: Path, name: str) -> None:
    path = newest(sound, name)
    with put_back(path):
        content = path.read_bytes()
        for position in spread(8 * len(content), 40):
            path.write_bytes(flipped(content, position))
            assert found_step(sound, f"{path} is damaged: its SHA-256 differs") == 3


@pytest.mark.parametrize("name", SHARDS)
def test_a_missing_shard_is_named(sound: Path, name: str) -> None:
    path = newest(sound, name)
    with put_back(path):
        path.unlink()
        assert found_step(sound, f"cannot read {path}: No such file or directory.") == 3


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_of_another_step_or_block_is_named(sound: Path, name: str) -> None:
    path = newest(sound, name)
    with put_back(path):
        for other in (step_folder(sound, 3) / name, newest(sound, "block-01.safetensors")):
            if other != path:
                path.write_bytes(other.read_bytes())
                assert found_step(sound, f"{path} is damaged") == 3


def test_a_manifest_cut_short_is_named(sound: Path) -> None:
    path = newest(sound, "manifest.json")
    with put_back(path):
        content = path.read_bytes()
        for size in spread(len(content), 60):
            path.write_bytes(content[:size])
            assert found_step(sound, f"cannot read {path}: ") == 3


def test_any_bit_of_a_manifest_counts(sound: Path) -> None:
    """Also in what no file is compared with: the recipe, names, shapes and the digest itself."""
    path = newest(sound, "manifest.json")
    with put_back(path):
        content = path.read_bytes()
        for position in range(0, 8 * len(content), 7):
            path.write_bytes(flipped(content, position))
            with pytest.raises(CheckpointError, match=r"manifest\.json"):
                TensorReader(path.parent)
            if position % 140 == 0:
                assert found_step(sound, str(path)) == 3


def test_a_checkpoint_without_a_manifest_was_never_finished(sound: Path) -> None:
    path = newest(sound, "manifest.json")
    with put_back(path):
        path.unlink()
        assert found_step(sound) == 3


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\xff")])
def test_records_are_not_needed_once_there_is_a_manifest(
    sound: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    path = newest(sound, name)
    with put_back(path):
        damage(path)
        assert found_step(sound) == 6


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_needed_before(tmp_path: Path, name: str) -> None:
    folder = write_blocks(tmp_path, 6)
    content = (folder / name).read_bytes()
    bad = [content[:size] for size in spread(len(content), 20)] + [None]
    for damaged in bad:
        if damaged is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"cannot read .*{name}"):
            commit(folder, 6, NUM_BLOCKS, RECIPE)
        assert newest_whole(tmp_path) is None


@pytest.mark.parametrize("name", RECORDS)
def test_a_bit_of_a_record_makes_no_bad_checkpoint(tmp_path: Path, name: str) -> None:
    write(tmp_path, 3)
    folder = write_blocks(tmp_path, 6)
    content = (folder / name).read_bytes()
    for position in spread(8 * len(content), 150):
        (folder / name).write_bytes(flipped(content, position))
        with suppress(CheckpointError):
            commit(folder, 6, NUM_BLOCKS, RECIPE)
        found = newest_whole(tmp_path)
        assert found is not None
        assert found.step in (3, 6)
        found_step(tmp_path, str(folder) if found.passed_over else None)
        (folder / "manifest.json").unlink(missing_ok=True)


def test_the_last_that_is_whole_is_taken_and_every_other_named(sound: Path) -> None:
    shard, manifest = step_folder(sound, 3) / SHARDS[3], newest(sound, "manifest.json")
    with put_back(shard, manifest):
        shard.write_bytes(b"")
        manifest.write_bytes(b"{}")
        found = newest_whole(sound)
        assert found is not None
        assert found.step == 0
        first, second = found.passed_over
        assert first.startswith(f"cannot read {manifest}")
        assert second.startswith(f"{shard} is damaged: it has 0 bytes")


def test_where_all_are_damaged_all_are_named(sound: Path) -> None:
    paths = [step_folder(sound, step) / SHARDS[0] for step in STEPS]
    with put_back(*paths):
        for path in paths:
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="no checkpoint is whole") as caught:
            newest_whole(sound)
        assert all(f"{path} is damaged" in str(caught.value) for path in paths)
        assert "another --out" in str(caught.value)


# Failures while a checkpoint is written


class PowerCut(BaseException):
    """Nothing happens any more, not even what would be tidied up."""


class Disk:
    """Counts what is done to files, and fails at one point.

    Args:
        fails_at: The operation that fails, counted from 0; none does without.
        error: How.
        forgets: Whether a power cut takes back what was not synchronised: contents of files and
            names in folders.
        skips: Folders or files whose synchronisation is left out, to see that the test notices.
    """

    def __init__(
        self,
        fails_at: int | None = None,
        error: Callable[[], BaseException] = PowerCut,
        *,
        forgets: bool = False,
        skips: str | None = None,
    ) -> None:
        self.done: list[str] = []
        self._fails_at = fails_at
        self._error = error
        self._forgets = forgets
        self._skips = skips
        self._is_dead = False
        self._unsynced: dict[Path, None] = {}
        self._names: list[tuple[Path, Callable[[], object]]] = []

    @contextmanager
    def inserted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
        with monkeypatch.context() as patch:
            self._patch(patch)
            yield self
        if self._is_dead and self._forgets:
            self._forget()

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        open_, replace, mkdir, unlink = Path.open, Path.replace, Path.mkdir, Path.unlink

        def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if "w" not in mode:
                return open_(path, mode, *args, **options)
            self._do(f"open {path.name}")
            self._unsynced[path] = None
            return _File(self, path, open_(path, mode, buffering=0))

        def replaced(path: Path, target: Path) -> Path:
            self._do(f"replace {target.name}")
            before = target.read_bytes() if target.exists() else None
            replace(path, target)
            if path in self._unsynced:
                self._unsynced[target] = self._unsynced.pop(path)
            self._names.append((target.parent, lambda: _restore(target, before)))
            return target

        def made(path: Path, *args: Any, **options: Any) -> None:
            self._do(f"mkdir {path.name}")
            mkdir(path, *args, **options)
            self._names.append((path.parent, lambda: shutil.rmtree(path)))

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            self._do(f"unlink {path.name}")
            content = path.read_bytes() if path.exists() else None
            unlink(path, missing_ok=missing_ok)
            self._names.append((path.parent, lambda: _restore(path, content)))

        def synced(descriptor: int) -> None:  # A real one would only take time.
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self._do(f"fsync {path.name}")
            if self._skips is None or not path.name.startswith(self._skips):
                self._unsynced.pop(path, None)
                self._names = [name for name in self._names if name[0] != path]

        def counted(name: str) -> Callable[..., Any]:
            function = getattr(os, name)

            def call(path: Any, *args: Any, **options: Any) -> Any:
                self._do(f"os.{name} {Path(path).name}")
                return function(path, *args, **options)

            return call

        for name, function in (
            ("open", opened),
            ("replace", replaced),
            ("mkdir", made),
            ("unlink", unlinked),
        ):
            patch.setattr(Path, name, function)
        patch.setattr(os, "fsync", synced)
        for name in ("open", "unlink", "rmdir"):
            patch.setattr(os, name, counted(name))

    def _do(self, what: str) -> None:
        if self._is_dead:
            raise PowerCut
        self.done.append(what)
        if len(self.done) - 1 == self._fails_at:
            error = self._error()
            self._is_dead = isinstance(error, PowerCut)
            raise error

    def _forget(self) -> None:
        for path in self._unsynced:
            if path.exists():
                path.write_bytes(b"")
        for _, undo in reversed(self._names):
            with suppress(OSError):
                undo()


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


class _File:
    """A file of which half is written when the disk fails."""

    def __init__(self, disk: Disk, path: Path, file: io.FileIO) -> None:
        self._disk, self._path, self._file = disk, path, file

    def write(self, content: bytes) -> int:
        self._file.write(content[: len(content) // 2])
        self._disk._do(f"write {self._path.name}")
        self._file.write(content[len(content) // 2 :])
        return len(content)

    def flush(self) -> None:
        self._disk._do(f"flush {self._path.name}")

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save(checkpoints: Path, step: int) -> None:
    """What the ranks of a run do for one checkpoint, in order."""
    write(checkpoints, step)
    prune(checkpoints, keep=1)


@pytest.fixture
def operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is done to files when a checkpoint of step 6 is made beside 0 and 3."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    checkpoints = tmp_path / "counted" / "checkpoints"
    for step in (0, 3):
        write(checkpoints, step)
    with Disk().inserted(monkeypatch) as disk:
        save(checkpoints, 6)
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000000", "step-00000006"]
    return disk.done


def broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disks: list[Disk]
) -> Iterator[tuple[Path, Disk]]:
    """Folders in which a checkpoint of step 6 was to be made beside 0 and 3, a disk each."""
    for index, disk in enumerate(disks):
        checkpoints = tmp_path / str(index) / "checkpoints"
        for step in (0, 3):
            write(checkpoints, step)
        is_told = True
        # What cannot be opened to be read is a checkpoint's error.
        with disk.inserted(monkeypatch), suppress(OSError, CheckpointError, PowerCut):
            save(checkpoints, 6)
            is_told = False
        # That what is no checkpoint any more cannot be removed is no error.
        assert is_told or not is_committed(step_folder(checkpoints, 3))
        yield checkpoints, disk


def left_over(checkpoints: Path) -> list[str]:
    """Files under a name for the time being."""
    return [path.name for path in checkpoints.rglob(".*")]


def test_the_disk_sees_everything(operations: list[str]) -> None:
    names = [*SHARDS, *RECORDS, "manifest.json"]
    for name in names:
        assert f"replace {name}" in operations
        for what in ("open", "write", "flush", "fsync"):
            assert sum(done.startswith(f"{what} .{name}.") for done in operations) == 1
    assert operations.count("fsync step-00000006") == len(names)
    assert "mkdir step-00000006" in operations
    assert operations.index("replace manifest.json") < operations.index("unlink manifest.json")


@pytest.mark.parametrize("how", ["full", "cut", "cut and forgotten"])
def test_a_failure_at_any_point_leaves_the_old_checkpoint_or_the_new(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: list[str]
) -> None:
    error = full if how == "full" else PowerCut
    disks = [Disk(i, error, forgets="forgotten" in how) for i in range(len(operations))]
    steps = []
    for checkpoints, disk in broken(tmp_path, monkeypatch, disks):
        index = len(steps)
        assert disk.done[index] == operations[index]
        steps.append(found_step(checkpoints))
        if how == "full":
            assert left_over(checkpoints) == []
        # The run goes on from there and comes to the same step again.
        set_aside(checkpoints, steps[-1])
        save(checkpoints, 6)
        assert found_step(checkpoints) == 6
        assert left_over(checkpoints) == []
    # It counts from the point at which the manifest has its name, on the disk where that matters.
    counts_from = operations.index("replace manifest.json") + (3 if "forgotten" in how else 1)
    assert operations[counts_from - 1] == (
        "fsync step-00000006" if "forgotten" in how else "replace manifest.json"
    )
    assert steps == [3] * counts_from + [6] * (len(operations) - counts_from)


@pytest.mark.parametrize("error", [full, PowerCut])
def test_the_same_step_can_be_written_where_nobody_cleaned_up(
    error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: list[str]
) -> None:
    disks = [Disk(index, error) for index in range(len(operations))]
    for checkpoints, _ in broken(tmp_path, monkeypatch, disks):
        write(checkpoints, 6)
        assert found_step(checkpoints) == 6


@pytest.mark.parametrize("skips", [".block-00.safetensors", ".manifest.json", "step-00000006"])
def test_a_disk_that_forgets_shows_what_was_not_synchronised(
    skips: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: list[str]
) -> None:
    """Were one fsync left out, there would be a point at which a checkpoint is lost or torn."""
    last = operations.index("unlink manifest.json") + 3  # Step 3 is no checkpoint any more.
    disk = Disk(last, forgets=True, skips=skips)
    ((checkpoints, _),) = broken(tmp_path, monkeypatch, [disk])
    found = newest_whole(checkpoints)
    assert found is None or found.step < 6


def test_the_first_checkpoint_of_a_run_is_there_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "counted").mkdir()
    with Disk().inserted(monkeypatch) as counting:
        write(tmp_path / "counted", 0)
    found = []
    for index in range(len(counting.done)):
        checkpoints = tmp_path / str(index)
        checkpoints.mkdir()
        disk = Disk(index, forgets=True)
        with disk.inserted(monkeypatch), pytest.raises((PowerCut, CheckpointError)):
            write(checkpoints, 0)
        found.append(newest_whole(checkpoints) is not None)
        write(checkpoints, 0)
        assert found_step(checkpoints) == 0
    # Only the very last operation, closing nothing but the books, comes after the commit.
    assert found == [False] * len(found)

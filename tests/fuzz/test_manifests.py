"""Manifests and what lies beside them: the whole checkpoint, an older one, or an error.

Nothing outside the folder is opened, and no file is loaded whose digest differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppll.checkpoints.checkpoint import commit, step_folder, write_block
from ppll.checkpoints.manifest import BlockRecord, Manifest
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import newest_whole, prune, set_aside
from ppll.checkpoints.resume import changes, refuse_changes, training_sections
from ppll.config import Recipe
from ppll.errors import CheckpointError, PpllError

from . import HUGE, WEIRD, fuzz, mutated_bytes, mutated_tree

RECIPE: dict[str, dict[str, Any]] = {"train": {"seed": 1, "epochs": 3}, "split": {"cuts": [2, 4]}}
SHARD = "block-00.safetensors"
NAMES = [
    "../../outside.safetensors",
    "../outside/block-00.safetensors",
    "/etc/passwd",
    "block-00.safetensors/../../../outside.safetensors",
    "./block-00.safetensors",
    "block-00.safetensors\n",
    "block-00.safetensors\0",
    "block-\u0660\u0660.safetensors",
    "block-9999.safetensors",
    "manifest.json",
    "block-00.json",
]
VALUES = [*WEIRD, *NAMES, "block-01.safetensors", "0" * 64, "float64", "int8", [4], [0, 2**62]]


def tensors_of(step: int, index: int) -> dict[str, torch.Tensor]:
    return {f"{index}.weight": torch.full((2, 3), step + 0.5), f"{index}.count": torch.tensor(step)}


def state_of(step: int, index: int) -> dict[str, torch.Tensor]:
    return {f"{index}.weight.momentum": torch.full((2, 3), step - 0.5)}


WRITTEN = {
    hashlib.sha256(safetensors.torch.save(tensors(step, index))).hexdigest()
    for tensors in (tensors_of, state_of)
    for step in (3, 6)
    for index in (0, 1)
}


def write(checkpoints: Path, step: int) -> Path:
    folder = step_folder(checkpoints, step)
    for index in range(2):
        write_block(folder, step, index, tensors_of(step, index), state_of(step, index))
    commit(folder, step, 2, RECIPE)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 3 and 6, which no test changes."""
    checkpoints = tmp_path_factory.mktemp("whole") / "checkpoints"
    for step in (3, 6):
        write(checkpoints, step)
    return checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Checkpoints of steps 3 and 6; what lies outside is a checkpoint of its own."""
    for step in (3, 6):
        write(tmp_path / "checkpoints", step)
    write(tmp_path / "outside", 6)
    (tmp_path / "outside.safetensors").write_bytes(b"not to be read")
    return tmp_path / "checkpoints"


_watched: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event.startswith(("open", "os.", "shutil.")):
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        _watched.extend(path for path in paths if os.path.isabs(path))


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    """From here on: no hook can be taken back, and it is called millions of times elsewhere."""
    sys.addaudithook(_audit)


@contextmanager
def only_within(folder: Path) -> Iterator[None]:
    """Fail if a file outside is opened, listed, made, moved or removed meanwhile."""
    global _watched
    _watched = []
    try:
        yield
    finally:
        touched, _watched = _watched, None
    assert touched, "nothing was watched"
    outside = [p for p in touched if not Path(os.path.normpath(p)).is_relative_to(folder)]
    assert outside == []


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The SHA-256 of everything that safetensors is given to load."""
    found: list[str] = []
    load = safetensors.torch.load

    def noted(content: bytes) -> dict[str, torch.Tensor]:
        found.append(hashlib.sha256(content).hexdigest())
        return load(content)

    monkeypatch.setattr(safetensors.torch, "load", noted)
    return found


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def sealed(tree: dict[str, Any]) -> str:
    """The manifest with a digest that fits, where it is one at all."""
    try:
        return Manifest.model_validate(tree).sealed().model_dump_json()
    except Exception:  # what mutations make of a model has no common error
        return json.dumps(tree)


def manifest_of(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return tree


def look(checkpoints: Path, loads: list[str]) -> None:
    """Step 6 as it was written or step 3, and nothing else was opened or loaded."""
    loads.clear()
    with only_within(checkpoints):
        found = newest_whole(checkpoints)
        assert found is not None
        assert (found.step, len(found.passed_over)) in {(6, 0), (3, 1)}
        assert all("step-00000006" in reason for reason in found.passed_over)
        state = found.reader.optimizer_state(["0.weight", "1.weight"])
        weights = found.reader.all_weights()
        assert same(weights, tensors_of(found.step, 0) | tensors_of(found.step, 1))
        assert same(state, state_of(found.step, 0) | state_of(found.step, 1))
    assert set(loads) <= WRITTEN
    _go_on(found.reader.manifest)


def _go_on(manifest: Manifest) -> None:
    """What a start does with the recipe of a manifest."""
    differences = changes(manifest.recipe, training_sections(Recipe()))
    with suppress(PpllError):
        refuse_changes(differences, [], length_matters=True)


@fuzz(150)
@given(st.data())
def test_a_mutated_manifest_loads_what_was_written_or_nothing(
    whole: Path, loads: list[str], data: st.DataObject
) -> None:
    path = whole / "step-00000006" / "manifest.json"
    before = path.read_bytes()
    tree = data.draw(mutated_tree(json.loads(before), VALUES))
    try:
        path.write_text(data.draw(st.sampled_from([json.dumps, sealed]))(tree))
        look(whole, loads)
    finally:
        path.write_bytes(before)


@fuzz(100)
@given(st.data())
def test_mutated_bytes_of_any_file_load_what_was_written_or_nothing(
    whole: Path, loads: list[str], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted((whole / "step-00000006").iterdir())))
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(mutated_bytes(before) | st.binary(max_size=50)))
        look(whole, loads)
    finally:
        path.write_bytes(before)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_000_000,
        b'{"step":' * 100_000,
        b'{"step":6,"num_blocks":2,"recipe":{"a":{"b":'
        + b"[" * 9999
        + b"]" * 9999
        + b'}},"files":{}}',
        b'{"step":' + b"9" * 100_000 + b',"num_blocks":2,"recipe":{},"files":{}}',
        b'{"step":6,"num_blocks":1000000000,"recipe":{},"files":{}}',
        b'{"step":1e999,"num_blocks":2,"recipe":{},"files":{}}',
        b'{"step":6,"step":3,"num_blocks":2,"recipe":{},"files":{}}',
        b'{"step":NaN}',
        b'{"\\ud800":1}',
        b"\xff\xfe{}",
        b"\0" * 1000,
        b"null",
    ],
    ids=lambda content: repr(content[:30]),
)
def test_json_that_would_break_a_reader_is_an_error(checkpoints: Path, content: bytes) -> None:
    folder = checkpoints / "step-00000006"
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*manifest\.json"):
        TensorReader(folder)
    (folder / "block-00.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*block-00\.json"):
        commit(folder, 6, 2, RECIPE)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_opens_nothing(
    checkpoints: Path, loads: list[str], name: str
) -> None:
    folder = checkpoints / "step-00000006"
    tree = manifest_of(folder)
    tree["files"][name] = tree["files"].pop(SHARD)
    (folder / "manifest.json").write_text(json.dumps(tree))
    look(checkpoints, loads)
    assert not loads or newest_whole(checkpoints).step == 3


def link_to_the_same(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "step-00000006" / path.name)


def relative_link(path: Path, outside: Path) -> None:
    path.symlink_to(Path("..", "..", "outside", "step-00000006", path.name))


def link_to_a_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nothing")


def pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def folder_instead(path: Path, outside: Path) -> None:
    path.mkdir()


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "put",
    [link_to_the_same, relative_link, link_to_a_device, dangling_link, pipe, folder_instead],
)
@pytest.mark.parametrize("name", [SHARD, "block-01.optimizer.safetensors", "manifest.json"])
def test_what_is_no_file_of_the_folder_is_not_read(
    checkpoints: Path, name: str, put: Callable[[Path, Path], None]
) -> None:
    outside = checkpoints.parent / "outside"
    path = checkpoints / "step-00000006" / name
    path.unlink()
    put(path, outside)
    with only_within(checkpoints):
        found = newest_whole(checkpoints)
    assert found is not None
    assert found.step == 3
    # Where there is no manifest of its own nothing says that the checkpoint was ever finished.
    assert name == "manifest.json" or name in found.passed_over[0]


def test_a_sparse_file_of_a_terabyte_is_not_read(checkpoints: Path) -> None:
    with (checkpoints / "step-00000006" / SHARD).open("ab") as file:
        file.truncate(2**40)
    found = newest_whole(checkpoints)
    assert found is not None
    assert f"it has {2**40} bytes" in found.passed_over[0]


@pytest.mark.parametrize("name", ["step-²", "step-٣", "step-", "step--1", "step-1e3", "step-x"])
def test_other_names_are_no_checkpoints(checkpoints: Path, name: str) -> None:
    shutil.copytree(checkpoints / "step-00000006", checkpoints / name)
    found = newest_whole(checkpoints)
    assert found is not None
    assert (found.step, found.passed_over) == (6, ())
    set_aside(checkpoints, 6)
    prune(checkpoints, 1)
    assert (checkpoints / name).is_dir()


def test_what_a_link_leads_to_is_not_removed(checkpoints: Path) -> None:
    outside = checkpoints.parent / "outside" / "step-00000006"
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    (checkpoints / "step-00000001").symlink_to(outside)
    (checkpoints / "step-00000009").symlink_to(checkpoints.parent)
    (checkpoints / "step-00000010").write_text("no folder")
    (checkpoints / "step-00000006" / "more").symlink_to(outside)
    set_aside(checkpoints, 6)
    prune(checkpoints, 1)
    prune(checkpoints, 1)
    set_aside(checkpoints, 3)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    assert (checkpoints.parent / "outside.safetensors").exists()


@fuzz(100)
@given(st.data())
def test_a_mutated_record_is_committed_as_it_was_or_not_at_all(
    whole: Path, loads: list[str], data: st.DataObject
) -> None:
    folder = whole / "step-00000006"
    record, manifest = folder / "block-00.json", folder / "manifest.json"
    before = {path: path.read_bytes() for path in (record, manifest)}
    tree = data.draw(mutated_tree(json.loads(before[record]), VALUES))
    try:
        manifest.unlink()
        record.write_text(json.dumps(tree))
        with only_within(whole):
            try:
                commit(folder, 6, 2, RECIPE)
            except CheckpointError:
                assert not manifest.exists()
        if manifest.exists():
            look(whole, loads)
        assert {p.name for p in folder.iterdir()} <= {p.name for p in before} | set(
            manifest_of(whole / "step-00000003")["files"]
        ) | {"block-01.json"}
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@fuzz(50)
@given(st.sampled_from([0, 1, 2, *HUGE]), st.sampled_from([0, 1, 99, 10_000, *HUGE]))
def test_counts_are_read_exactly_or_refused(step: int, index: int) -> None:
    """A number that a float cannot hold is not rounded on the way."""
    try:
        record = BlockRecord(step=step, block_index=index, files={}, nonfinite="x")
    except ValueError:
        assert not (0 <= step < 2**63 and 0 <= index < 2**63)
        return
    assert BlockRecord.model_validate_json(record.model_dump_json()) == record

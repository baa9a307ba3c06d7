"""Checkpoints on disk: whole or not at all, and never loaded when damaged."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.checkpoints.checkpoint import (
    commit,
    step_folder,
    tensor_digest,
    write_block,
)
from ppll.checkpoints.reader import TensorReader
from ppll.errors import CheckpointError
from tests.test_in_process import recipe

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}
STATE = {"a.weight.exp_avg": torch.ones(2, 3), "a.weight.step": torch.tensor(1.0)}
RECIPE = {"train": {"seed": 1}}
OTHER = {"b.weight": torch.full((2,), 7.0)}


def write(checkpoints: Path, step: int) -> Path:
    """A committed checkpoint of two blocks."""
    folder = step_folder(checkpoints, step)
    write_block(folder, step, 0, WEIGHTS, STATE)
    write_block(folder, step, 1, OTHER, {})
    commit(folder, step, 2, RECIPE)
    return folder


def same(found: dict, expected: dict) -> bool:
    return set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in found)


def test_what_was_written_is_read_by_name(tmp_path: Path) -> None:
    reader = TensorReader(write(tmp_path, 5))
    assert (reader.manifest.step, reader.manifest.num_blocks) == (5, 2)
    assert same(reader.all_weights(), WEIGHTS | OTHER)
    assert same(reader.weights(["b.weight", "unknown"]), OTHER)
    assert same(reader.optimizer_state(["a.weight", "b.weight"]), STATE)
    assert reader.optimizer_state(["a"]) == {}


def test_nothing_but_the_files_of_the_checkpoint_stays(tmp_path: Path) -> None:
    names = {path.name for path in write(tmp_path, 5).iterdir()}
    shards = {f"block-0{i}{end}.safetensors" for i in (0, 1) for end in ("", ".optimizer")}
    assert names == shards | {"block-00.json", "block-01.json", "manifest.json"}


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [torn, flipped, Path.unlink])
@pytest.mark.parametrize("shard", ["block-00.safetensors", "block-00.optimizer.safetensors"])
def test_a_damaged_shard_is_never_loaded(tmp_path: Path, shard: str, damage, monkeypatch) -> None:
    folder = write(tmp_path, 5)
    damage(folder / shard)
    monkeypatch.setattr("safetensors.torch.load", lambda _: pytest.fail("was loaded"))
    reader = TensorReader(folder)
    read = reader.optimizer_state if "optimizer" in shard else reader.weights
    with pytest.raises(CheckpointError, match=rf"{shard}.*(damaged|No such file)"):
        read(["a.weight"])


@pytest.mark.parametrize("damage", [torn, Path.unlink])
def test_a_damaged_manifest_is_refused(tmp_path: Path, damage) -> None:
    folder = write(tmp_path, 5)
    damage(folder / "manifest.json")
    with pytest.raises(CheckpointError, match=r"cannot read .*manifest\.json"):
        TensorReader(folder)


@pytest.mark.parametrize("name", ["../block-00.safetensors", "/etc/passwd", "block-00.pt", "..."])
def test_a_manifest_names_shards_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 5) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"].pop("block-00.safetensors")
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot read"):
        TensorReader(path.parent)


def test_a_checkpoint_without_all_records_is_not_committed(tmp_path: Path) -> None:
    write_block(tmp_path, 5, 0, WEIGHTS, STATE)
    with pytest.raises(CheckpointError, match=r"cannot read .*block-01\.json"):
        commit(tmp_path, 5, 2, RECIPE)
    assert not (tmp_path / "manifest.json").exists()


def test_records_of_another_step_are_not_committed(tmp_path: Path) -> None:
    write_block(tmp_path, 5, 0, WEIGHTS, STATE)
    write_block(tmp_path, 4, 1, OTHER, {})
    with pytest.raises(CheckpointError, match="block 1 of step 4 where block 1 of step 5"):
        commit(tmp_path, 5, 2, RECIPE)
    assert not (tmp_path / "manifest.json").exists()


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    write_block(tmp_path, 1, 0, {"w": tensor}, {})
    commit(tmp_path, 1, 1, RECIPE)
    assert torch.equal(TensorReader(tmp_path).all_weights()["w"], tensor)


def test_digest_by_hand() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t()
    content = struct.pack("<4f", 1, 3, 2, 4)
    expected = f"a.weight float32 [2, 2] {hashlib.sha256(content).hexdigest()}"
    assert tensor_digest("a.weight", tensor) == expected
    number = hashlib.sha256(struct.pack("<q", 3)).hexdigest()
    assert tensor_digest("count", torch.tensor(3)) == f"count int64 [] {number}"
    half = hashlib.sha256(b"\x80\x3f").hexdigest()
    assert tensor_digest("h", torch.ones(1, dtype=torch.bfloat16)) == f"h bfloat16 [1] {half}"


def test_a_network_whose_last_values_were_not_saved_keeps_its_own(tmp_path: Path) -> None:
    layers = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train, optimizer = {"max_steps": 2, "on_nonfinite": "ignore"}, {"name": "sgd", "lr": 1e30}
    settings = {key: value for key, value in recipe().items() if key != "model"}
    explodes = {**settings, "train": train, "optimizer": optimizer}
    trainer = ppll.Trainer(explodes, model=model, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"of step 2 are not saved[\s\S]*result\.json"):
        trainer.fit()
    assert same(model.state_dict(), before)

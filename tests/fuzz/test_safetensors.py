"""Files of tensors whose header says what cannot be: an error, or the right tensors."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from ppll.checkpoints.checkpoint import commit, write_block
from ppll.checkpoints.manifest import Manifest
from ppll.checkpoints.reader import TensorReader
from ppll.checkpoints.recovery import newest_whole
from ppll.data import Dataset
from ppll.data.cache import cached
from ppll.errors import CheckpointError, DataError, ModelError, RunFolderError
from ppll.models.network import Network
from ppll.trained.weights import read_weights

from . import HUGE, WEIRD, fuzz, mutated_bytes, mutated_tree

NETWORK = Network.from_modules(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
WEIGHTS = {name: tensor.clone() for name, tensor in NETWORK.as_module().state_dict().items()}
GOOD = safetensors.torch.save(WEIGHTS)
DTYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8}
DTYPES |= {"F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16}
DTYPES |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
SHAPES: list[list[int]] = [[], [3], [3, 2], [2, 3], [6], [0], [1] * 70, [2**62, 4], [-1, 3]]
EMPTY = [[0, 2**62, 2**62], [0, 2**63], [2**64 - 1, 0], [0] * 70]
SHAPES += EMPTY
VALUES = [*WEIRD, *DTYPES, *SHAPES, [0, 24], [24, 0], [0, 2**63], [8, 8]]


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack_from("<Q", content)[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header: Any, data: bytes) -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data


@st.composite
def one_tensor(draw: st.DrawFn, name: str) -> bytes:
    """A sound file of one tensor, of any type and shape."""
    dtype, shape = draw(st.sampled_from(sorted(DTYPES))), draw(st.sampled_from(SHAPES))
    size = abs(int(np.prod(shape, dtype=object)))
    size = size * DTYPES[dtype] // 8 if size < 1000 else 0
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return joined({name: entry}, draw(st.sampled_from([b"\0", b"\xff"])) * size)


@st.composite
def retyped(draw: st.DrawFn, content: bytes) -> bytes:
    """A file in which a tensor has another type or shape of as many bytes."""
    header, data = parts(content)
    name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    begin, end = header[name]["data_offsets"]
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    header[name]["dtype"] = dtype
    header[name]["shape"] = draw(st.sampled_from([[(end - begin) * 8 // DTYPES[dtype]], [3, 2]]))
    return joined(header, data)


def mutated(content: bytes, name: str) -> st.SearchStrategy[bytes]:
    header, data = parts(content)
    lengths = st.sampled_from([0, 1, 7, 10**8, *(n for n in HUGE if 0 <= n < 2**64)])
    return st.one_of(
        st.builds(joined, mutated_tree(header, VALUES), st.just(data)),
        st.builds(joined, mutated_bytes(json.dumps(header).encode()), st.just(data)),
        st.builds(lambda n: struct.pack("<Q", n) + content[8:], lengths),
        mutated_bytes(content),
        one_tensor(name),
        retyped(content),
        st.binary(max_size=100),
    )


TWICE = b'{"0.weight":%b,"0.weight":%b}' % (
    b'{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}',
    b'{"dtype":"F32","shape":[3,2],"data_offsets":[24,48]}',
)
OVERLAPPING = b'{"0.weight":%b,"0.bias":%b}' % (
    b'{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}',
    b'{"dtype":"F32","shape":[3],"data_offsets":[12,24]}',
)
BAD = {
    "a key twice": joined(TWICE, bytes(48)),
    "overlapping": joined(OVERLAPPING, bytes(24)),
    "deep": joined(b'{"a":' * 100_000, b""),
    "header of 2**64 bytes": b"\xff" * 8 + GOOD[8:],
    "cut": GOOD[:-1],
    "longer": GOOD + b"\0",
    "nothing": b"",
}
for _shape in EMPTY:
    _entry = {"dtype": "F32", "shape": _shape, "data_offsets": [0, 0]}
    BAD[f"empty {_shape[:3]}"] = joined({"0.weight": _entry}, b"")
for _dtype in ("F4", "F6_E2M3", "F8_E8M0", "X"):
    _entry = {"dtype": _dtype, "shape": [8], "data_offsets": [0, DTYPES.get(_dtype, 8)]}
    BAD[_dtype] = joined({"0.weight": _entry}, bytes(DTYPES.get(_dtype, 8)))


# Shards of a checkpoint: the digest is right, what it is of is not


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint, of step 0, whose shard of weights is replaced again and again."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    folder = checkpoints / "step-00000000"
    write_block(folder, 0, 0, WEIGHTS, {})
    commit(folder, 0, 1, {})
    return checkpoints


def read_forged(checkpoints: Path, content: bytes) -> dict[str, torch.Tensor]:
    """What is read of a shard that its manifest vouches for."""
    folder = checkpoints / "step-00000000"
    (folder / "block-00.safetensors").write_bytes(content)
    tree = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    tree["files"]["block-00.safetensors"] |= {"num_bytes": len(content), "sha256": digest}
    manifest = Manifest.model_validate(tree).sealed()
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return TensorReader(folder).all_weights()


@fuzz(150)
@given(mutated(GOOD, "0.weight"))
@example(GOOD)
def test_a_shard_holds_what_the_manifest_says_or_is_refused(
    checkpoints: Path, content: bytes
) -> None:
    try:
        found = read_forged(checkpoints, content)
    except CheckpointError:
        with pytest.raises(CheckpointError, match="no checkpoint is whole"):
            newest_whole(checkpoints)
        return
    forms = {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()}
    assert forms == {name: (tensor.dtype, tensor.shape) for name, tensor in WEIGHTS.items()}
    assert newest_whole(checkpoints) is not None


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_shard_is_named(checkpoints: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"block-00\.safetensors"):
        read_forged(checkpoints, BAD[kind])


# Weights to start from


def check_weights(path: Path) -> None:
    try:
        found = read_weights(path, NETWORK)
    except ModelError as error:
        assert str(error).startswith("model.weights: ")  # noqa: PT017 (or it is read)
        return
    for name, wanted in WEIGHTS.items():
        assert found[name].shape == wanted.shape
        assert found[name].is_floating_point() == wanted.is_floating_point()
        assert found[name].float().isfinite().all()


@fuzz(150)
@given(mutated(GOOD, "0.weight"))
@example(GOOD)
def test_weights_fit_the_network_or_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    check_weights(path)


def with_weight(tensor: torch.Tensor) -> bytes:
    return safetensors.torch.save(WEIGHTS | {"0.weight": tensor})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, "") for content in BAD.values()),
        (with_weight(torch.ones(3, 2).int()), r"0\.weight holds torch\.int32, .* torch\.float32"),
        (with_weight(torch.ones(3, 2).bool()), r"0\.weight holds torch\.bool"),
        (with_weight(torch.ones(3, 2) * 1j), r"0\.weight holds torch\.complex64"),
        (with_weight(torch.full((3, 2), torch.nan)), r"0\.weight holds a value that is not finite"),
        (with_weight(torch.ones(2, 3)), r"0\.weight has shape \(2, 3\)"),
    ],
    ids=[*BAD, "int", "bool", "complex", "nan", "shape"],
)
def test_weights_that_cannot_be_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"^model.weights: .*{message}"):
        read_weights(path, NETWORK)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["x" * 5000, "missing", "folder", "pipe", "link"])
def test_weights_are_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(RunFolderError if name == "folder" else ModelError):
        read_weights(tmp_path / f"{name}.safetensors", NETWORK)


# Data given from Python


def dataset(as_images: bool) -> Dataset:
    inputs = torch.arange(36).reshape(3, 3, 2, 2).byte()
    targets = torch.tensor([0, 1, 2])
    part = (inputs if as_images else inputs / 2, targets)
    return Dataset.from_arrays(train=part, test=part)


def saved(tmp_path: Path, data: Dataset) -> bytes:
    data.save(tmp_path / "data")
    return (tmp_path / "data").read_bytes()


@pytest.mark.parametrize("as_images", [True, False], ids=["images", "floats"])
def test_a_data_set_is_one_or_is_refused(tmp_path: Path, as_images: bool) -> None:
    content = saved(tmp_path, dataset(as_images))
    path = tmp_path / "data"

    @fuzz(125)
    @given(mutated(content, "train.inputs") | mutated_facts(content))
    @example(content)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = Dataset.load(path)
        except DataError:
            return
        assert 0 < found.num_classes < 2**31
        for part in (found.train, found.test):
            assert len(part.inputs) == len(part.targets) > 0
            assert 0 <= part.targets.min() <= part.targets.max() < found.num_classes
        for values in (found.mean, found.std):
            assert values is None or np.isfinite(np.array(values, float)).all()

    check()


@st.composite
def mutated_facts(draw: st.DrawFn, content: bytes) -> bytes:
    """A file whose metadata is other JSON, or none."""
    header, data = parts(content)
    facts = header["__metadata__"]["ppll"]
    text = st.one_of(
        mutated_tree(json.loads(facts)).map(json.dumps),
        mutated_bytes(facts.encode()).map(lambda b: b.decode(errors="replace")),
        st.sampled_from(["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "NaN", "null", ""]),
    )
    header["__metadata__"]["ppll"] = draw(text)
    return joined(header, data)


# Decoded data in the cache, which saves time and nothing else


def test_a_cache_gives_what_would_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path))
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([1, 2])}

    def decoded() -> dict[str, Any]:
        return {name: array.copy() for name, array in arrays.items()}

    cached("test", ["1"], decoded)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()

    @fuzz(125)
    @given(mutated(content, "x"))
    @example(content)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = cached("test", ["1"], decoded)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)

    check()

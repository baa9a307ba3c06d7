"""What a data set accepts, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppll
from ppll.data import Dataset, Split
from ppll.errors import DataError


def images(number: int = 4, channels: int = 3) -> torch.Tensor:
    return torch.arange(number * channels * 16).reshape(number, channels, 4, 4).to(torch.uint8)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_a_data_set_is_shown_without_its_values() -> None:
    part = (torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    shown = repr(Dataset.from_arrays(train=part, test=part))
    split = "Split(float32 of shape (4, 1, 8, 8), targets int64 of shape (4,))"
    assert shown.startswith(f"Dataset(train={split}, test={split}, num_classes=2")


def test_users_arrays_become_float32_and_int64() -> None:
    x, y = np.ones((3, 5)), np.array([0, 1, 2], np.int16)
    dataset = Dataset.from_arrays(train=(x, y), test=(x, y))
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.targets.dtype == torch.int64
    assert (dataset.num_classes, dataset.input_shape) == (3, (5,))
    assert dataset.mean is dataset.std is None


@pytest.mark.parametrize(("shape", "warns"), [((16, 16, 3), True), ((3, 16, 16), False)])
def test_channels_that_seem_to_be_last_are_pointed_at(
    shape: tuple[int, ...], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    part = (torch.zeros(2, *shape, dtype=torch.uint8), labels(0, 1))
    Dataset.from_arrays(train=part, test=part)
    assert ("give inputs.transpose(0, 3, 1, 2)" in caplog.text) is warns


def test_numpy_and_torch_give_the_same() -> None:
    x, y = images(), labels(0, 1, 2, 1)
    first = Dataset.from_arrays(train=(x, y), test=(x, y))
    second = Dataset.from_arrays(train=(x.numpy(), y.numpy()), test=(x.numpy(), y.numpy()))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert (first.mean, first.std) == (second.mean, second.std)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f8").reshape(3, 2),
        np.arange(6.0).reshape(3, 2)[::-1],
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
    ],
    ids=["big endian", "negative strides", "column-major", "lists"],
)
def test_any_memory_layout_is_read(array: Any) -> None:
    dataset = Dataset.from_arrays(train=(array, [0, 1, 1]), test=(array, [0, 1, 1]))
    assert dataset.train.inputs.tolist() == np.asarray(array).tolist()


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64, np.int8, ">i4"])
def test_labels_are_whole_numbers_of_any_type(kind: Any) -> None:
    targets = np.array([0, 1, 2]).astype(kind)
    part = (np.zeros((3, 2)), targets)
    dataset = Dataset.from_arrays(train=part, test=part, num_classes=targets.max() + 1)
    assert (dataset.train.targets.tolist(), dataset.num_classes) == ([0, 1, 2], 3)


def test_read_only_arrays_are_read() -> None:
    x = np.zeros((2, 3))
    x.flags.writeable = False
    assert len(Dataset.from_arrays(train=(x, [0, 1]), test=(x, [0, 1])).train) == 2


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 2, 6, 6), dtype=np.uint8)
    dataset = Dataset.from_arrays(train=(x, np.zeros(50, int)), test=(x[:1], [0]))
    assert dataset.mean == pytest.approx((x / 255).mean((0, 2, 3)))
    assert dataset.std == pytest.approx((x / 255).std((0, 2, 3)))


def test_channel_of_one_value_is_not_divided_by_zero() -> None:
    x = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    assert Dataset.from_arrays(train=(x, [0, 1]), test=(x, [0, 1])).std == (1.0,)


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (images(3), labels(0, 1), "3 inputs but 2 targets"),
        (images(2), torch.zeros(2), r"targets must be int64 .* found float32 of shape \(2,\)"),
        (images(2), torch.zeros(2, 1).long(), r"found int64 of shape \(2, 1\)"),
        (images(2).long(), labels(0, 1), r"inputs must be uint8 images .* found int64"),
        (images(2).flatten(2), labels(0, 1), r"uint8 of shape \(2, 3, 16\): .*\[:, None\] of grey"),
        (torch.tensor(1.0), labels(0), r"float32 of shape \(\)"),
        (images(2)[:0], labels(), "are empty"),
        (torch.ones(1, 2, requires_grad=True), labels(0), "require a gradient"),
    ],
)
def test_split_that_does_not_fit_is_refused(
    inputs: torch.Tensor, targets: torch.Tensor, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        Split(inputs, targets)


@pytest.mark.parametrize("bad", [-1, 3])
def test_first_label_that_is_no_class_is_named(bad: int) -> None:
    good = Split(images(2), labels(0, 1))
    with pytest.raises(DataError, match=rf"label {bad} of test sample 1 .* labels 0 to 2"):
        Dataset(good, Split(images(3), labels(0, bad, bad)), 3, (0.5,) * 3, (0.5,) * 3)


def test_parts_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"train .*\(4, 3, 4, 4\) but test .*\(4, 1, 4, 4\)"):
        Dataset.from_arrays(train=(images(), [0] * 4), test=(images(channels=1), [0] * 4))


def test_normalisation_must_fit_the_samples() -> None:
    grey = Split(images(2, 1), labels(0, 1))
    floats = Split(torch.zeros(2, 3), labels(0, 1))
    with pytest.raises(DataError, match="mean must hold 1 numbers"):
        Dataset(grey, grey, 2)
    with pytest.raises(DataError, match=r"std must be above 0 .* \(0.0,\)"):
        Dataset(grey, grey, 2, (0.5,), (0.0,))
    with pytest.raises(DataError, match="mean must hold no numbers"):
        Dataset(floats, floats, 2, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.array(["a", "b"]), "train: found an array of <U1"),
        (np.array([[1.0], [np.nan]]), "train: sample 1 holds a value that is not finite"),
        (np.array([np.inf, 1.0]), "train: sample 0 holds"),
        (np.array([1.0, 1e300]), "train: sample 1 holds a value that is not finite in float32"),
        (np.zeros((2, 3), np.int16), "train: inputs must be uint8 images"),
        ([[1.0], [1.0, 2.0]], "train: found lists of different lengths"),
        (np.ones((2, 3), np.longdouble), "train: found an array of .*: .* of at most 64 bits"),
        (np.ma.masked_less([1.0, 2.0], 2.0), "train: found a masked array, .* array.filled"),
        (torch.eye(2).to_sparse(), "train: found a tensor that is sparse, .* give a dense one"),
        (torch.ones(2, 3, device="meta"), "train: found a tensor that is .* on the meta device"),
        ([torch.ones(3, requires_grad=True)] * 2, "train: found a list .*requires grad.* tensor"),
    ],
)
def test_from_arrays_says_which_part_is_wrong(inputs: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Dataset.from_arrays(train=(inputs, [0, 1]), test=(np.zeros(2), [0, 1]))


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("given", [np.zeros((121, 3)), torch.zeros(2, 3), "ab", (1, 2, 3)])
def test_a_part_that_is_no_pair_is_refused(part: str, given: Any) -> None:
    parts: dict[str, Any] = {"train": (images(), [0] * 4), "test": (images(), [0] * 4), part: given}
    with pytest.raises(DataError, match=rf"{part} must be a pair of arrays .*, found \w+"):
        Dataset.from_arrays(**parts)


@pytest.mark.parametrize("given", [(images(), [0] * 4), "digits", Dataset])
def test_what_is_no_data_set_cannot_be_trained_on(given: Any) -> None:
    words = rf"must be a ppll.Dataset, found {type(given).__name__}: .*from_arrays\(train="
    with pytest.raises(DataError, match=words):
        ppll.Trainer("digits-resnet", data=given)


def test_saved_data_set_reads_back(tmp_path: Path) -> None:
    x, y = images(8), torch.arange(8)
    dataset = Dataset.from_arrays(train=(x, y), test=(x[2:], y[2:]))
    dataset.save(tmp_path / "data.safetensors")
    read = Dataset.load(tmp_path / "data.safetensors")
    assert (read.num_classes, read.mean, read.std) == (8, dataset.mean, dataset.std)
    assert torch.equal(read.train.inputs, x)
    assert torch.equal(read.test.targets, y[2:])


def test_saved_floats_read_back(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(3, 2)
    Dataset.from_arrays(train=(x, [0, 1, 1]), test=(x, [0, 1, 1])).save(tmp_path / "d")
    assert torch.equal(Dataset.load(tmp_path / "d").test.inputs, x)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_file_that_is_no_data_set_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the data set .*data\.safetensors"):
        Dataset.load(path)


def test_safetensors_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2)}, tmp_path / "d")
    with pytest.raises(DataError, match="cannot read the data set"):
        Dataset.load(tmp_path / "d")

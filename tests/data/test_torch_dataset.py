"""Torch's data sets, read into memory: what of them is accepted, refused, and in which words."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import ppll
from ppll.data import Dataset
from ppll.errors import DataError

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
LABELS = [0, 1, 2, 1, 0, 2]


class Made(TorchDataset[Any]):
    """Samples that a function makes of their index."""

    def __init__(self, make: Callable[[int], object], number: int = 6) -> None:
        self.make, self.number = make, number
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> object:
        self.asked.append(index)
        return self.make(index)


def read(make: Callable[[int], object], number: int = 6, **options: Any) -> Dataset:
    made = Made(make, number)
    return Dataset.from_torch(train=made, test=made, **options)


def refused(make: Callable[[int], object], words: str) -> DataError:
    good = Made(lambda index: (PIXELS[index], LABELS[index]))
    for parts in ({"train": Made(make), "test": good}, {"train": good, "test": Made(make)}):
        part = "train" if isinstance(parts["test"], Made) and parts["test"] is good else "test"
        with pytest.raises(DataError, match=f"^{part}: {words}") as caught:
            Dataset.from_torch(**parts)
    return caught.value


def picture(index: int) -> Image.Image:
    return Image.fromarray(PIXELS[index].transpose(1, 2, 0))


@pytest.mark.parametrize(
    "make",
    [
        lambda index: (torch.from_numpy(PIXELS[index]), torch.tensor(LABELS[index])),
        lambda index: (PIXELS[index], np.int16(LABELS[index])),
        lambda index: [np.asfortranarray(PIXELS[index]), LABELS[index]],
        lambda index: (picture(index), LABELS[index]),
    ],
    ids=["tensors", "numpy", "lists of column-major arrays", "Pillow"],
)
def test_it_is_what_the_arrays_would_be(make: Callable[[int], object]) -> None:
    part = (PIXELS, LABELS)
    assert read(make).equals(Dataset.from_arrays(train=part, test=part))


def test_grey_images_have_one_channel() -> None:
    dataset = read(lambda index: (Image.fromarray(PIXELS[index, 0]), 0))
    assert dataset.input_shape == (1, 4, 5)
    assert torch.equal(dataset.train.inputs[:, 0], torch.from_numpy(PIXELS[:, 0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_becomes_float32(dtype: torch.dtype) -> None:
    values = torch.linspace(0, 1, 12).reshape(6, 2).to(dtype)
    dataset = read(lambda index: (values[index], LABELS[index]))
    assert torch.equal(dataset.train.inputs, values.to(torch.float32))
    assert dataset.mean is None


def test_torch_s_own_data_sets_are_read_in_the_order_of_their_index() -> None:
    whole = TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS))
    dataset = Dataset.from_torch(train=Subset(whole, [5, 0, 3]), test=whole, num_classes=7)
    assert torch.equal(dataset.train.inputs, torch.from_numpy(PIXELS[[5, 0, 3]]))
    assert dataset.train.targets.tolist() == [2, 0, 1]
    assert (len(dataset.test), dataset.num_classes) == (6, 7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_rows_of_tokens_have_a_target_each(dtype: torch.dtype) -> None:
    rows = torch.arange(24).reshape(6, 4).to(dtype)
    dataset = read(lambda index: (rows[index, :-1], rows[index, 1:]), num_classes=24)
    assert dataset.train.holds_tokens
    assert torch.equal(dataset.train.targets, rows[:, 1:])


def test_rows_of_tokens_may_have_one_class_each() -> None:
    rows = torch.arange(24).reshape(6, 4)
    dataset = read(lambda index: (rows[index], LABELS[index]), num_tokens=30)
    assert torch.equal(dataset.train.inputs, rows)
    assert (dataset.num_classes, dataset.num_tokens) == (3, 30)


def test_every_sample_is_read_once_but_the_first_ones() -> None:
    made = Made(lambda index: (np.float32([index]), 0), number=100)
    test = Made(lambda index: (np.float32([index]), 0), number=2)
    dataset = Dataset.from_torch(train=made, test=test)
    assert dataset.train.inputs.flatten().tolist() == list(range(100))
    twice = [index for index in range(32) for _ in range(2)]
    assert made.asked == [*twice, *range(32, 100)]


def test_samples_are_not_kept_beside_what_is_made_of_them() -> None:
    alive = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def make(index: int) -> tuple[Tensor, int]:
        nonlocal alive
        assert alive < 4
        alive += 1
        sample = torch.full((3,), float(index))
        weakref.finalize(sample, gone)
        return sample, 0

    assert len(read(make, number=50).train) == 50


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (Stream(), "Stream"),
        (DataLoader(Made(lambda index: index)), "DataLoader"),
        (TorchDataset(), "Dataset"),
        (iter([]), "list_iterator"),
        (Made, "type"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_what_has_no_length_and_no_samples_by_index_is_refused(
    part: str, given: Any, name: str
) -> None:
    good = Made(lambda index: (PIXELS[index], 0))
    words = rf"{part} must have __len__ and __getitem__, .*, found {name}: .*\.dataset.*from_arrays"
    with pytest.raises(DataError, match=words):
        Dataset.from_torch(**{"train": good, "test": good, part: given})


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(DataError, match="train: Made is empty: give samples"):
        read(lambda index: index, number=0)


def after(index: int, late: object) -> Callable[[int], object]:
    """Good samples before one."""
    return lambda asked: late if asked == index else (PIXELS[asked], LABELS[asked])


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        (PIXELS[0], "ndarray"),
        ((PIXELS[0],), "tuple of 1"),
        ([PIXELS[0], 0, 1], "list of 3"),
        ({"image": PIXELS[0], "label": 0}, "dict"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("index", [0, 4])
def test_a_sample_that_is_no_pair_is_named(index: int, sample: object, found: str) -> None:
    refused(after(index, sample), rf"sample {index} is no pair \(input, label\), found {found}: ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1, 2], "has the input of a list: give a tensor, a numpy array or an image of Pillow"),
        ("cat.png", "has the input of a str"),
        (np.array(["a"]), "has an input that cannot be used: found an array of <U1"),
        (Image.new("RGBA", (4, 5)), r"is an image of mode RGBA, .* RGB or L: .*convert\(\"RGB\"\)"),
        (Image.new("I;16", (4, 5)), "is an image of mode I;16"),
        (PIXELS[0, :, 1:], r"is uint8 of shape \(3, 3, 5\), but sample 0 uint8 of shape \(3, 4,"),
        (PIXELS[0] / 255, r"is float64 of shape \(3, 4, 5\), but sample 0 uint8 of shape \(3, 4,"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(given: object, words: str) -> None:
    refused(after(5, (given, 0)), f"sample 5 {words}")


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (True, "True"),
        ("cat", "'cat'"),
        (None, "None"),
        (2**70, str(2**70)),
        ([[1], [1, 2]], r"\[\[1\], \[1, 2\]\]"),
    ],
)
def test_a_label_that_is_no_number_is_named(label: object, shown: str) -> None:
    refused(after(2, (PIXELS[2], label)), f"sample 2 has the label {shown}: give .* whole number")


@pytest.mark.parametrize("label", [0.5, 1.0, torch.tensor(0.5)])
def test_values_among_classes_are_named(label: object) -> None:
    words = r"sample 2 has a label that is float\d+ of shape \(\), but sample 0 int64 of shape \(\)"
    refused(after(2, (PIXELS[2], label)), words)


def test_labels_of_other_shapes_are_named() -> None:
    words = r"sample 3 has a label that is int64 of shape \(2,\), but sample 0 int64 of shape \(\)"
    refused(after(3, (PIXELS[3], [0, 1])), words)


def test_what_a_data_set_raises_is_the_cause() -> None:
    def make(index: int) -> object:
        return PIXELS[index], LABELS[index] if index != 4 else {}["four"]

    error = refused(make, r"sample 4 cannot be read \(KeyError: 'four'\)")
    assert isinstance(error.__cause__, KeyError)


RANDOM = r"train: sample \d+ is another one .*random.*(data\.crop).*(data\.cutmix) in the recipe"


@pytest.mark.parametrize("part", ["input", "label"])
def test_a_transform_that_is_random_is_refused(part: str) -> None:
    """One sample in ten, so the first one alone would not tell."""
    draws = np.random.default_rng(0)

    def make(index: int) -> object:
        acts = draws.random() < 0.1
        pixels = np.full((1, 4, 4), acts and part == "input", np.float32)
        return pixels, int(acts and part == "label")

    with pytest.raises(DataError, match=RANDOM):
        read(make, number=40)


def test_what_is_random_is_refused_also_in_memory_that_is_used_again() -> None:
    """A second reading overwrites what the first one gave."""
    draws, sample = np.random.default_rng(0), np.zeros((1, 4, 4), dtype=np.float32)

    def make(index: int) -> object:
        sample[:] = draws.random(sample.shape)
        return sample, index % 2

    with pytest.raises(DataError, match=RANDOM):
        read(make)


def test_a_random_size_is_refused() -> None:
    sizes = itertools.count(3)
    with pytest.raises(DataError, match=RANDOM):
        read(lambda index: (np.zeros((1, 4, next(sizes)), np.uint8), 0))


def test_what_is_no_number_is_not_taken_for_a_random_one() -> None:
    with pytest.raises(DataError, match="train: sample 0 holds a value that is not finite"):
        read(lambda index: (np.float32([np.nan, index]), 0))


def test_what_does_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(DataError, match=r"train: 4611686018427387904 samples .* into memory"):
        read(lambda index: (np.zeros(8), 0), number=2**62)


@pytest.mark.parametrize(
    "given",
    [TensorDataset(torch.zeros(2, 3), torch.zeros(2)), DataLoader(TensorDataset(torch.zeros(2)))],
)
def test_the_trainer_says_how_a_torch_data_set_is_given(given: Any) -> None:
    words = rf"must be a ppll.Dataset, found {type(given).__name__}: .*from_torch\(train="
    with pytest.raises(DataError, match=words):
        ppll.Trainer("digits-resnet", data=given)

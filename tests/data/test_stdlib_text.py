"""Text of the standard library: windows, parts that share no file, and a fingerprint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll.data import Dataset, load_batches, load_dataset, prepare
from ppll.errors import DataError
from ppll.message import FEATURES, TARGETS
from ppll.sections import DataConfig

NUM_FILES, SIZE, LENGTH = 20, 65, 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty files of one letter each, in two folders, and some that are no source."""
    for index in range(NUM_FILES):
        folder = tmp_path / ("even" if index % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        (folder / f"{index:02}.py").write_bytes(bytes([ord("a") + index]) * SIZE)
    (tmp_path / "encodings").mkdir()
    (tmp_path / "encodings" / "table.py").write_text("table" * 100)
    (tmp_path / "even" / "notes.txt").write_text("notes" * 100)
    (tmp_path / "even" / "empty.py").write_text("")
    (tmp_path / "even" / "short.py").write_text("x")
    return tmp_path


def config(root: Path, **options: Any) -> DataConfig:
    return DataConfig(
        name="stdlib-text",
        root=root,
        **{"length": LENGTH, "num_test": 20, "batch_size": 4} | options,
    )


def letters(rows: torch.Tensor) -> set[str]:
    return {chr(byte) for byte in rows.flatten().tolist()}


def test_parts_share_no_file_and_lose_none(root: Path) -> None:
    found = load_dataset(config(root))
    train, test = letters(found.train.inputs), letters(found.test.inputs)
    assert not train & test
    assert sorted(train | test) == [chr(ord("a") + i) for i in range(NUM_FILES)]
    # Three files of eight windows have enough of them; the last is cut.
    assert len(test) == 3
    assert len(found.test) == 20
    assert len(found.train) == (NUM_FILES - 3) * (SIZE // LENGTH)
    assert found.num_classes == 256


def test_the_name_of_a_file_may_be_no_text(root: Path) -> None:
    before = load_dataset(config(root))
    try:
        with open(os.fsencode(root) + b"/\xff.py", "w") as file:
            file.write("~" * SIZE)
    except OSError:
        pytest.skip("this file system has no such names")
    found = load_dataset(config(root))
    assert len(found.train) + len(found.test) > len(before.train) + len(before.test)


@pytest.mark.parametrize("validation", [0.2, 9])
def test_validation_keeps_whole_files(root: Path, validation: float) -> None:
    data = prepare(load_dataset(config(root)), config(root, validation=validation))
    inputs = data.dataset.train.inputs
    kept, train = inputs[data.validation_samples], inputs[data.train_samples]
    assert not letters(kept) & letters(train)
    assert len(kept) + len(train) == len(inputs)
    wanted = validation if validation > 1 else validation * len(inputs)
    assert wanted <= len(kept) < wanted + SIZE // LENGTH


def test_a_validation_part_of_all_files_is_refused(root: Path) -> None:
    found = config(root, only=["even"], num_test=60, validation=10)
    with pytest.raises(DataError, match=r"data\.validation = 10 leaves nothing to learn from"):
        prepare(load_dataset(found), found)


def test_a_window_is_followed_by_its_targets(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.py").write_bytes(bytes(range(50)))
    found = load_dataset(config(tmp_path, num_test=3))
    assert torch.equal(found.test.inputs.flatten(), torch.arange(24, dtype=torch.uint8))
    assert torch.equal(found.test.targets.flatten(), torch.arange(1, 25, dtype=torch.uint8))
    assert len(found.train) == 6


def test_batches_are_whole_numbers(root: Path) -> None:
    batch = load_batches(config(root), seed=0).train_batch(0, 0)
    for name in (FEATURES, TARGETS):
        assert batch[name].shape == (4, LENGTH)
        assert batch[name].dtype == torch.int64


def test_folders_are_chosen(root: Path) -> None:
    only = load_dataset(config(root, only=["even"], num_test=8))
    assert letters(torch.cat([only.train.inputs, only.test.inputs])) == set("acegikmoqs")
    without = load_dataset(config(root, without=["even"], num_test=8))
    assert letters(torch.cat([without.train.inputs, without.test.inputs])) == set("bdfhjlnprt")


def test_a_fingerprint_is_of_names_and_bytes(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.fingerprint = 'wrong', but .* '(\w{16})'"
    ) as caught:
        load_dataset(config(root, fingerprint="wrong"))
    found = str(caught.value).split("'")[3]
    load_dataset(config(root, fingerprint=found[:6].upper()))
    (root / "odd" / "01.py").rename(root / "odd" / "21.py")
    with pytest.raises(DataError, match="another version of Python"):
        load_dataset(config(root, fingerprint=found))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 0}, r"data\.length must be at least 1"),
        ({"num_test": 0}, r"data\.num_test must be at least 1"),
        ({"length": SIZE}, r"no windows of data\.length = 65"),
        ({"num_test": 1000}, r"no windows"),
        ({"only": ["nowhere"]}, r"no Python source in .*nowhere"),
        ({"only": ["even", "nowhere"]}, r"data.only names 'nowhere', but nothing is read"),
        ({"only": ["even", "odd"], "without": ["odd"]}, r"data.only names 'odd', .* is left out"),
    ],
)
def test_what_cannot_be_is_refused(root: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(config(root, **options))


def test_every_machine_has_some() -> None:
    found = load_dataset(DataConfig(name="stdlib-text"))
    assert len(found.train) > 10_000
    assert len(found.test) == 1024
    assert found.train.inputs.dtype == torch.uint8


def test_tokens_and_groups_are_read_as_they_were_saved(root: Path, tmp_path: Path) -> None:
    found = load_dataset(config(root))
    found.save(tmp_path / "data.safetensors")
    read = Dataset.load(tmp_path / "data.safetensors")
    assert read.equals(found)
    assert read.train.groups is not None
    assert read.test.groups is None


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), r"targets must be int64 of shape \(N,\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), "rows of tokens must be"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3).int(), "targets must be torch.int64"),
        (torch.zeros(2, 3).long() + 5, torch.zeros(2, 3).long(), "token 5 of train sample 0"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(
    inputs: torch.Tensor, targets: torch.Tensor, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        Dataset.from_arrays(train=(inputs, targets), test=(inputs, targets), num_classes=5)

"""Where a data set lies: the rule, and that batches are made there without a look at any number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppll.data import Dataset, Loader, PreparedData, prepare
from ppll.data.home import home_of, num_bytes
from ppll.errors import DataError
from ppll.sections import DataConfig, DataHome

CPU, GPU, STAND_IN = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")
NUM = 51


def dataset(dtype: torch.dtype = torch.uint8) -> Dataset:
    x = (torch.arange(NUM * 3 * 12 * 10) % 251).reshape(NUM, 3, 12, 10).to(dtype)
    return Dataset.from_arrays(train=(x, torch.arange(NUM)), test=(x[:20], torch.arange(20)))


def prepared(**config: Any) -> PreparedData:
    return prepare(dataset(), DataConfig(**{"batch_size": 16, **config}))


def test_size_is_that_of_inputs_and_labels() -> None:
    assert num_bytes(prepared()) == (NUM + 20) * (3 * 12 * 10 + 8)


@pytest.mark.parametrize(
    ("wanted", "device", "parts_free", "expected"),
    [
        *[(wanted, CPU, 0, CPU) for wanted in ("auto", "host", "device")],
        ("host", GPU, 100, CPU),
        ("auto", GPU, 4, CPU),
        ("auto", GPU, 4.01, GPU),
        ("device", GPU, 1.01, GPU),
    ],
)
def test_it_lies_on_a_gpu_that_has_the_room(
    wanted: DataHome,
    device: torch.device,
    parts_free: float,
    expected: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = prepared()
    free = (int(parts_free * num_bytes(data)), 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked: {GPU: free}[asked])
    assert home_of(data, wanted, device) == expected


def test_a_gpu_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    with pytest.raises(DataError, match=r'cuda:0 has 0 MiB of free .*: set runtime.data = "host"'):
        home_of(prepared(), "device", GPU)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop": 2, "flip": True, "cutout": 3, "validation": 10},
        {"crop": 2, "flip": True, "randaugment": 7, "cutout": 4},
        {"mixup": 0.4, "cutmix": 1.0, "batch_size": 15},
    ],
    ids=" ".join,
)
def test_batches_are_made_without_asking_the_device(
    config: dict[str, Any], dtype: torch.dtype
) -> None:
    """The meta device, which stands for a GPU, has no values: to look at one is an error."""
    if dtype is torch.float32:
        config = {key: value for key, value in config.items() if key != "randaugment"}
    data = prepare(dataset(dtype), DataConfig(**{"batch_size": 16, **config}))
    here, there = (Loader(data, seed=3, fields=("image",)) for _ in range(2))
    there.move_to(STAND_IN)
    made_here, made_there = (
        [
            *(b.train_batch(1, 2), b.train_batch(0, 0), b.train_targets(0, 1)),
            *(batch for split in b.splits for batch in b.evaluation_batches(split)),
        ]
        for b in (here, there)
    )
    for expected, found in zip(made_here, made_there, strict=True):
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert found[name].device == STAND_IN
            assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)


def test_a_loader_may_be_moved_while_it_is_used() -> None:
    batches = Loader(prepared(crop=2), seed=0)
    expected = batches.train_batch(0, 1)
    batches.move_to(STAND_IN)
    assert batches.train_batch(0, 1)["features"].device == STAND_IN
    batches.move_to(CPU)
    assert all(torch.equal(t, expected[n]) for n, t in batches.train_batch(0, 1).items())

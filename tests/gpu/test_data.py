"""Batches that are made on a GPU, beside those of the processor: the same bits, and no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ppll
from ppll.data import Dataset, Loader, PreparedData, prepare
from ppll.data.home import home_of
from ppll.message import Kind, Message
from ppll.prefetch import Prefetcher
from ppll.sections import DataConfig
from tests.faults import recipe
from tests.gpu.waiting import nobody_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(120),
]

GPU = torch.device("cuda", 0)
CONFIGS: list[dict[str, Any]] = [
    {},
    {"crop": 4, "flip": True, "cutout": 8, "validation": 100},
    {"crop": 4, "flip": True, "randaugment": 7, "cutout": 8},
    {"flip": True, "mixup": 0.4, "cutmix": 1.0, "batch_size": 125},
]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As in every run on a GPU."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def data_of(config: dict[str, Any], dtype: torch.dtype = torch.uint8) -> PreparedData:
    x = torch.randint(0, 256, (515, 3, 32, 32), dtype=torch.uint8).to(dtype)
    y = torch.randint(10, (515,))
    dataset = Dataset.from_arrays(train=(x, y), test=(x[:200], y[:200]))
    return prepare(dataset, DataConfig(**{"batch_size": 128, **config}))


def some_batches(loader: Loader) -> list[dict[str, Tensor]]:
    """The first and last of two epochs and a whole evaluation."""
    last = loader.steps_per_epoch - 1
    trained = [loader.train_batch(epoch, index) for epoch in (0, 1) for index in (0, last)]
    return [*trained, *(b for split in loader.splits for b in loader.evaluation_batches(split))]


@pytest.mark.parametrize("config", CONFIGS, ids=" ".join)
def test_the_same_bits_as_on_the_processor_and_nobody_waits(config: dict[str, Any]) -> None:
    data = data_of(config)
    here, there = (Loader(data, seed=3, fields=("image",)) for _ in range(2))
    there.move_to(GPU)
    some_batches(there)  # The first ones allocate memory.
    there.move_to(GPU)  # Nothing is drawn yet again.
    with nobody_waits():
        found = some_batches(there)
    for expected, batch in zip(some_batches(here), found, strict=True):
        assert expected.keys() == batch.keys()
        for name, tensor in batch.items():
            assert tensor.device == GPU
            assert tensor.is_contiguous()
            assert torch.equal(tensor.cpu(), expected[name]), name


def test_floating_point_images_and_vectors() -> None:
    data = data_of({"crop": 4, "flip": True, "mixup": 0.4}, torch.float32)
    here, there = (Loader(data, seed=3) for _ in range(2))
    there.move_to(GPU)
    for expected, found in zip(some_batches(here), some_batches(there), strict=True):
        assert all(torch.equal(found[name].cpu(), expected[name]) for name in expected)


def test_a_small_data_set_lies_on_the_gpu_by_itself() -> None:
    assert home_of(data_of({}), "auto", GPU) == GPU
    assert home_of(data_of({}), "host", GPU) == torch.device("cpu")


def test_what_is_made_ahead_arrives_whole_and_nobody_waits() -> None:
    """Many batches at once in flight, so that memory is used again while it is copied."""
    loader = Loader(data_of({"crop": 4}), seed=0)

    def stream() -> Iterator[Message]:
        for number in range(60):
            tensors = loader.train_batch(number // 5, number % 5)
            yield Message(kind=Kind.TRAIN, sequence=number, step=number + 1, tensors=tensors)

    inbox, sums = Prefetcher(stream(), 4, GPU), []
    for number in range(60):
        assert inbox.wait(20)
        if number == 20:
            torch.cuda._sleep(200_000_000)  # What follows queues up behind it for some 0.1 s.
        with nobody_waits() if number < 20 else nullcontext():
            message = inbox.recv()
            sums.append(message.features.double().sum())
            inbox.release(message)
    inbox.close()
    expected = [message.features.double().sum() for message in stream()]
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))


def whole_numbers(number: int) -> Iterator[Message]:
    """Messages that are made at once, of 4 MiB each, full of their own number."""
    for sequence in range(number):
        tensors = {"features": torch.full((1 << 20,), float(sequence))}
        yield Message(kind=Kind.TRAIN, sequence=sequence, step=sequence + 1, tensors=tensors)


def test_the_next_batch_is_copied_beside_the_work_on_this_one() -> None:
    """It is there, for a stream that waits for nobody, while the receiver's works for seconds."""
    working, watching = torch.cuda.current_stream(GPU), torch.cuda.Stream(GPU)
    inbox = Prefetcher(whole_numbers(6), 2, GPU)

    def is_there(number: int) -> bool:
        with torch.cuda.stream(watching):
            return bool(message.features.eq(number).all())

    for number in range(4):  # to load kernels and to reserve memory may be to wait
        message = inbox.recv(20)
        working.synchronize()
        assert is_there(number)
        inbox.release(message)
    inbox.recv(20)
    torch.cuda._sleep(5_000_000_000)  # cycles
    message = inbox.recv(20)
    while not is_there(5) and not working.query():
        pass
    assert not working.query()
    inbox.close()


def test_memory_is_used_again_behind_the_work_alone() -> None:
    """The host is far ahead, and no more messages than may be in use have memory all the same."""
    before = torch.cuda.memory_allocated(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    inbox, found = Prefetcher(whole_numbers(80), 2, GPU), []
    for number in range(80):
        message = inbox.recv(20)
        for _ in range(2):
            torch.cuda._sleep(1_000_000)
            found.append(message.features.eq(number).all())
        inbox.release(message)
    inbox.close()
    assert torch.stack(found).all()
    # Two, the one that was released last, and a quarter of one for what is compared.
    assert torch.cuda.max_memory_allocated(GPU) - before < 4 * (4 << 20)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["data.randaugment=5", "data.cutmix=1.0"],
        ["train.cuda_graphs=true", "runtime.concurrent_blocks=true", "train.epochs=4"],
    ],
    ids=" ".join,
)
def test_a_run_ends_the_same_wherever_its_data_lie(settings: list[str], tmp_path: Path) -> None:
    results = []
    for place in ("host", "device"):
        base = recipe(stages=1, devices="cuda", stall_timeout_s=60)
        changed = base.with_settings([f"runtime.data={place}", *settings])
        results.append(ppll.Trainer(changed, out=tmp_path / place).fit())
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert results[0].test_accuracy == results[1].test_accuracy

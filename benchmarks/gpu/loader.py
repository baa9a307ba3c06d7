"""How many samples a second does the loader give, if nobody computes with them?

Method: 50,000 random colour images of 32 x 32 in bytes, cropped (4) and mirrored, in batches on the
device. ``host, waiting`` makes a batch on the processor, then copies it and waits. ``host, pinned``
is ``runtime.data = "host"``: a thread makes batches ahead in page-locked memory, and copies are
queued on a stream of their own. ``host, in order`` is the same, but who receives a batch queues its
copy in front of the work on it. ``device`` is ``runtime.data = "device"``: the data set lies there
and batches are made there. With ``--cycles`` the GPU works for so long on every batch, on one
multiprocessor: what copies cost beside the work and in front of it. A repeat is so many batches,
over as many epochs as that takes, between two readings of the clock, the device idle at both. On a
processor nothing is page-locked or copied, and there is no work.

Run from the repository's root: ``python -m benchmarks.gpu.loader --device cuda``
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from benchmarks.report import Spread, new_parser, write_report

from ppll.channels.base import Inbox
from ppll.config import Recipe
from ppll.data import Dataset, Loader, PreparedData, prepare
from ppll.devices import check_devices, device_of
from ppll.message import Kind, Message
from ppll.on_demand import OnDemand
from ppll.planning.pieces import clock
from ppll.prefetch import Prefetcher
from ppll.sections import DataConfig, RuntimeConfig

CAPACITY = 4
WARM_UP = 3

CHANGES: dict[str, dict[str, Any]] = {
    "crop, flip": {"crop": 4, "flip": True},
    "crop, flip, cutmix": {"crop": 4, "flip": True, "cutmix": 1.0},
    "crop, flip, RandAugment": {"crop": 4, "flip": True, "randaugment": 7},
}


def main() -> None:
    options = _parse()
    runtime = RuntimeConfig(devices=options.device)
    check_devices(Recipe(runtime=runtime))
    device = device_of(runtime, 0)
    torch.set_num_threads(1)
    dataset = make_dataset(options.samples)
    rows: list[dict[str, Any]] = []
    for (name, change), size in itertools.product(CHANGES.items(), options.batch_sizes):
        data = prepare(dataset, DataConfig(batch_size=size, drop_last=True, **change))
        for path in PATHS:
            rates = _rates(options, data, path, device)
            rows.append({"changes": name, "batch_size": size, "path": path})
            rows[-1]["samples_per_second"] = rates.to_dict()
            print(f"{name}, batch {size}, {path}: {rates.text(0)} samples/s", flush=True)
            write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=50_000, help="of the data set")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--batches", type=int, default=40, help="of a repeat")
    parser.add_argument("--cycles", type=int, default=0, help="of a GPU, of work on every batch")
    return parser.parse_args()


def make_dataset(num_samples: int) -> Dataset:
    """Random images; as many to test with as a batch needs."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_samples, 3, 32, 32)
    inputs = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    targets = torch.randint(10, (num_samples,), generator=generator)
    return Dataset.from_arrays(train=(inputs, targets), test=(inputs[:1], targets[:1]))


def _waiting(loader: Loader, device: torch.device) -> Inbox:
    return OnDemand(message.on(device) for message in _stream(loader))


def _in_order(loader: Loader, device: torch.device) -> Inbox:
    """Batches that are still in page-locked memory when they are received."""
    stream = _stream(loader)
    return Prefetcher((m.pinned() for m in stream) if _is_gpu(device) else stream, CAPACITY)


def _pinned(loader: Loader, device: torch.device) -> Inbox:
    return Prefetcher(_stream(loader), CAPACITY, device)


def _there(loader: Loader, device: torch.device) -> Inbox:
    loader.move_to(device)
    return OnDemand(_stream(loader))


PATHS: dict[str, Callable[[Loader, torch.device], Inbox]] = {
    "host, waiting": _waiting,
    "host, in order": _in_order,
    "host, pinned": _pinned,
    "device": _there,
}


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _stream(loader: Loader) -> Iterator[Message]:
    """Training batches without end."""
    for sequence in itertools.count():
        tensors = loader.train_batch(*divmod(sequence, loader.steps_per_epoch))
        yield Message(kind=Kind.TRAIN, sequence=sequence, step=sequence + 1, tensors=tensors)


def _rates(
    options: argparse.Namespace, data: PreparedData, path: str, device: torch.device
) -> Spread:
    with ExitStack() as stack:
        inbox = PATHS[path](Loader(data, seed=0), device)
        stack.callback(inbox.close)
        take = partial(_take, inbox, device=device, cycles=options.cycles)
        take(WARM_UP)
        seconds = [take(options.batches) for _ in range(options.repeats)]
    return Spread.of([options.batches * data.config.batch_size / s for s in seconds])


def _take(inbox: Inbox, number: int, *, device: torch.device, cycles: int) -> float:
    """Seconds that so many batches take, with the work on each."""
    start = clock(device)
    for _ in range(number):
        message = inbox.recv().on(device, waits=False)
        if cycles and _is_gpu(device):
            torch.cuda._sleep(cycles)
        inbox.release(message)
    return clock(device) - start


if __name__ == "__main__":
    main()

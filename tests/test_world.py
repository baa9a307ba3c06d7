"""What processes tell each other through the agents' store, and how often they ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ppll.errors import ChannelTimeout
from ppll.world import World, name_of_start

PATIENCE_S = 20.0
SIZES = (1, 2, 5, 16, 64)


class CountingStore:
    """A double of torch's stores that counts requests.

    A look for keys that are not there waits for them, so that nobody has to look twice.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self.num_requests += 1
            self._values[key] = value
            self._changed.notify_all()

    def check(self, keys: Sequence[str]) -> bool:
        with self._changed:
            self.num_requests += 1
            return self._changed.wait_for(lambda: self._values.keys() >= set(keys), PATIENCE_S)

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        with self._changed:
            self.num_requests += 1
            return [self._values[key].encode() for key in keys]


class EmptyStore(CountingStore):
    """One in which a look does not wait."""

    def check(self, keys: Sequence[str]) -> bool:
        return self._values.keys() >= set(keys)


def worlds(size: int, store: CountingStore) -> list[World]:
    """The processes of one host."""
    first = World(0, size, 0, size, 0, "host", "127.0.0.1", store, store)
    return [replace(first, rank=rank, local_rank=rank) for rank in range(size)]


def together(act: Callable[[World], Any], size: int) -> tuple[list[Any], int]:
    """What all processes come to that do the same, and how often they ask the store."""
    store = CountingStore()
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(act, worlds(size, store))), store.num_requests


@pytest.mark.parametrize("size", SIZES)
def test_the_first_hears_from_all_with_one_request_each(size: int) -> None:
    heard, num_requests = together(lambda w: w.collect("place", {"is": w.rank}), size)
    assert heard == [[{"is": rank} for rank in range(size)]] + [[]] * (size - 1)
    assert num_requests == size + 2  # Everyone writes; the first looks, and reads all at once.


@pytest.mark.parametrize("size", SIZES)
def test_all_meet_with_two_requests_each(size: int) -> None:
    arrived = [False] * size

    def come(world: World) -> bool:
        arrived[world.rank] = True
        world.meet("place")
        return all(arrived)

    all_there, num_requests = together(come, size)
    assert all_there == [True] * size
    assert num_requests == 2 * size + 2


@pytest.mark.parametrize("size", SIZES)
def test_all_know_the_name_of_a_start_with_five_requests_each(size: int) -> None:
    def find(world: World) -> str:
        return name_of_start(world.store, world.rank, size)

    names, num_requests = together(find, size)
    assert len(set(names)) == 1
    assert len(names[0]) == 32  # Every key begins with it.
    assert num_requests == 5 * size + 1


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_who_does_not_come_in_time_is_named_to_all_that_wait(rank: int) -> None:
    store = EmptyStore()
    for other in {0, 1, 2} - {rank}:
        store.set(f"ready/{other}", json.dumps(True))
    with pytest.raises(ChannelTimeout, match="'ready/3' of another process"):
        worlds(4, store)[rank].meet("ready", timeout_s=0.01)


def test_who_hears_nothing_from_the_first_process_says_so() -> None:
    store = EmptyStore()
    for other in range(2):
        store.set(f"ready/{other}", json.dumps(True))
    with pytest.raises(ChannelTimeout, match="'ready/all' of another process"):
        worlds(3, store)[2].meet("ready", timeout_s=0.01)

"""A process's place on the board: here only how it leaves; runs on hosts show the rest."""

from __future__ import annotations

import threading

from ppll.hosts.board import Board
from ppll.hosts.departure import Departure
from ppll.mesh import Mesh
from ppll.world import World


class SlowStore:
    """A double of torch's stores whose answers take a while."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.num_in_use = 0

    def clone(self) -> SlowStore:
        return self

    def set(self, key: str, value: str) -> None:
        self.num_in_use += 1
        self.asked.set()
        self.answers.wait(20)
        self.num_in_use -= 1

    def check(self, keys: list[str]) -> bool:
        return False


def test_who_leaves_is_not_inside_the_store_any_more() -> None:
    """The interpreter's end would abort a process with a thread there."""
    store = SlowStore()
    world = World(0, 1, 0, 1, 0, "host", "127.0.0.1", store, store)
    board = Board(world, Mesh.of(1), 60, Departure())
    assert store.asked.wait(20)
    threading.Timer(0.2, store.answers.set).start()
    board.close()
    assert store.num_in_use == 0

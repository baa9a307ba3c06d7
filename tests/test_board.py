"""A process's place on the board: here how it leaves; runs on hosts show the rest."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Sequence
from queue import Queue
from typing import Any, NoReturn

import pytest

from ppll.errors import ChannelClosed, UsageError
from ppll.hosts.board import Board
from ppll.hosts.departure import Departure
from ppll.hosts.roster import Roster
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


class Left(Exception):
    """Instead of the end of a process."""


class NotedDeparture(Departure):
    """A double that ends nothing."""

    def leave(self, code: int) -> NoReturn:
        raise Left(code)


class BoardStore:
    """A double of torch's stores for what a board asks; it counts looks at everybody's status."""

    def __init__(self) -> None:
        self.num_looks = 0
        self._values: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def clone(self) -> BoardStore:
        return self

    def set(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> bytes:
        return self._values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return self._values.keys() >= set(keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.num_looks += 1
        return [self.get(key) for key in keys]

    def compare_set(self, key: str, expected: str, value: str) -> str:
        with self._lock:
            return self._values.setdefault(key, value)

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount
            return self._counts[key]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> BoardStore:
    """One whose boards do nothing but what they are asked for: they have no threads."""
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    monkeypatch.setattr("ppll.hosts.board._HEARD_S", 0.01)
    return BoardStore()


def boards(store: BoardStore, num_hosts: int, per_host: int) -> list[Board]:
    size = num_hosts * per_host
    first = World(0, size, 0, per_host, 0, "host", "127.0.0.1", store, store)
    places = itertools.product(range(num_hosts), range(per_host))
    worlds = [
        dataclasses.replace(first, rank=rank, local_rank=local_rank, host_index=host)
        for rank, (host, local_rank) in enumerate(places)
    ]
    return [Board(world, Mesh.of(size), 60, NotedDeparture()) for world in worlds]


@pytest.mark.parametrize("alive", [range(4), (0,), (1,), (3,), (2, 3), (1, 2, 3)], ids=str)
def test_of_each_host_one_says_why_whoever_is_there(
    alive: Sequence[int], store: BoardStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.set("verdict", json.dumps({"code": 1, "message": "the reason"}))
    for board in [board for index, board in enumerate(boards(store, 2, 4)) if index % 4 in alive]:
        with pytest.raises(Left, match="1"):
            board._turn()
    assert capsys.readouterr().err == "the reason\n" * 2


@pytest.mark.parametrize(("local_rank", "num_looks"), [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_after_a_death_only_the_first_two_of_a_host_look_at_all(
    local_rank: int, num_looks: int, store: BoardStore
) -> None:
    found = boards(store, 1, 4)
    for board in found:
        board._roster.show(store, board.page.read())
    store.set("verdict", json.dumps({"code": 1, "message": "the reason"}))
    with pytest.raises(Left), found[local_rank].ending_together():
        raise ChannelClosed
    assert store.num_looks == num_looks


def test_who_hears_nothing_of_a_death_looks_itself(
    store: BoardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first two of a host are gone."""
    monkeypatch.setattr("ppll.hosts.board._LONG_AFTERMATH_S", 0.05)
    found = boards(store, 1, 4)
    for board in found:
        board._roster.show(store, board.page.read())
    with pytest.raises(Left), found[2].ending_together():
        raise ChannelClosed
    assert store.num_looks == 1
    assert "rank 0 (stage 0) failed at step 0" in store.get("verdict").decode()


def test_what_fails_is_told_before_its_process_leaves(store: BoardStore) -> None:
    """It may have to wait for a callback, while its neighbours ask why their channels are gone."""
    failing, neighbour = boards(store, 1, 2)
    failing.tell(ValueError("why"))
    with pytest.raises(Left), neighbour.ending_together():
        raise ChannelClosed
    assert "ValueError: why" in store.get("verdict").decode()


def test_what_fails_has_a_while_to_leave_after_it_has_told(
    store: BoardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It merges metrics and waits for callbacks; that others are gone by then is no news."""
    failing, other = boards(store, 1, 2)
    for board in (failing, other):
        board._roster.show(store, board.page.read())
    monkeypatch.setattr(failing, "_timeout_s", 0.0)
    failing.tell(ValueError("why"))
    told_s = time.monotonic()
    failing._turn()
    with pytest.raises(Left):
        other._turn()
    monkeypatch.setattr(time, "monotonic", lambda: told_s + 29)
    failing._turn()
    monkeypatch.setattr(time, "monotonic", lambda: told_s + 31)
    with pytest.raises(Left, match="1"):
        failing._turn()


def test_the_board_s_thread_does_not_end_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppll.hosts.board._TURN_S", 0.01)
    store, departure = BoardStore(), NotedDeparture()
    turns: Queue[str] = Queue()
    show = Roster.show

    def noted_show(*args: Any) -> None:
        show(*args)
        if store.check(["verdict"]):
            turns.put("turn")

    def leave(code: int) -> NoReturn:
        turns.put("left")
        raise SystemExit(code)

    monkeypatch.setattr(Roster, "show", noted_show)
    monkeypatch.setattr(departure, "leave", leave)
    world = World(0, 1, 0, 1, 0, "host", "127.0.0.1", store, store)
    board = Board(world, Mesh.of(1), 60, departure)
    board.tell(ValueError("why"))
    assert [turns.get(timeout=20) for _ in range(3)] == ["turn"] * 3
    board.close()


def test_a_connection_that_breaks_is_named_with_who_has_found_out(
    store: BoardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppll.hosts.board._LONG_AFTERMATH_S", 0.05)
    monkeypatch.setattr(Roster, "silent_since", lambda *_: [])
    found = boards(store, 1, 2)
    for board in found:
        board._roster.show(store, board.page.read())
    with pytest.raises(Left), found[1].ending_together():
        raise ChannelClosed("the sender is gone (reset by peer).")
    verdict = json.loads(store.get("verdict"))["message"]
    place, cause = verdict.partition(": ppll.errors.ChannelClosed: ")[::2]
    assert place == "rank 1 (stage 1) failed at step 0, while it started"
    assert cause.startswith(
        "the sender is gone (reset by peer). All processes are there: the connection has broken."
    )


def test_only_of_a_run_that_has_begun_somebody_stands_still(
    store: BoardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the first process may read data for an hour."""
    found = boards(store, 1, 2)
    pages = [board.page.read() for board in found]
    later_s = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    for board, page in zip(found, pages, strict=True):
        board._roster.show(store, page)
    found[1]._turn()
    found[1].begun_s = later_s - 1000
    with pytest.raises(Left):
        found[1]._turn()
    assert "no progress for 60 s" in store.get("verdict").decode()


@pytest.mark.parametrize(("error", "note"), [(ValueError, "\nHow."), (UsageError, "")])
def test_below_a_failure_stands_how_to_go_on(
    error: type[Exception], note: str, store: BoardStore, capsys: pytest.CaptureFixture[str]
) -> None:
    board, other = boards(store, 1, 2)
    board.after_failure = other.after_failure = "How."
    with pytest.raises(Left), board.ending_together():
        raise error("why")
    with pytest.raises(Left):
        other._turn()
    assert capsys.readouterr().err.endswith(f"{error.__name__}: why{note}\n")


def test_a_store_that_is_gone_is_named(
    store: BoardStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    for board in boards(store, 2, 2):
        board.after_failure = "How."
        with pytest.raises(Left):
            board._lose_store(None)
    printed = capsys.readouterr().err
    assert printed.count("torchrun's store at 10.0.0.7:29500 cannot be reached for 60 s") == 2
    assert printed.count("\nHow.\n") == 2

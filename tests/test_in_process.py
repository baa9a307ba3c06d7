"""A run of one stage, which computes in the process that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import ppll
from ppll.interrupts import Interrupts, Wish
from ppll.job import Job
from ppll.launching import in_process
from ppll.launching.in_process import run_here
from ppll.numerics import in_turn, own_generator, torch_as_new
from ppll.run_folder import RunFolder
from ppll.status import Activity, Monitor, Status
from tests.interleaving import MadeUpBatches, blueprint_of, built_blocks, small_recipe


def recipe(**sections: Any) -> dict[str, Any]:
    """A network that draws in every forward."""
    data = {"shape": [1, 8, 8], "num_classes": 3, "num_train": 40, "num_test": 10}
    model = {"name": "vit", "depth": 2, "width": 8, "heads": 2, "patch_size": 4, "dropout": 0.5}
    return {
        "data": {"name": "synthetic", "batch_size": 10, **data},
        "model": model,
        "split": {"blocks": 2},
        "train": {"epochs": 10},
        **sections,
    }


def fit(out: Path) -> str:
    return ppll.Trainer(recipe(), out=out).fit().weights_sha256


def test_runs_of_several_threads_have_the_bits_that_each_has_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        hashes = list(threads.map(fit, (tmp_path / name for name in ("a", "b", "c"))))
    assert hashes == [fit(tmp_path / "alone")] * 3


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("method", ["dgl", "contsup"])
def test_a_program_may_have_another_default_type(method: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "model": {"name": "resnet", "depth": 8, "width": 4},
        "method": {"name": method},
        "train": {"epochs": 1},
    }
    ppll.Trainer(recipe(**sections), out=tmp_path).fit()
    assert torch.get_default_dtype() == torch.float64
    found = ppll.evaluate_exits(tmp_path)
    assert found.exit_accuracy == ppll.evaluate(tmp_path).exit_accuracy
    parameters = ppll.load(tmp_path).parameters()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def draw() -> None:
    torch.manual_seed(1)
    torch.rand(1)


def draw_with_its_own() -> None:
    with own_generator():
        draw()


@pytest.mark.parametrize("draws", [draw_with_its_own, in_turn(draw)])
def test_who_draws_in_another_thread_waits(draws: Callable[[], None]) -> None:
    with own_generator():
        torch.manual_seed(0)
        thread = threading.Thread(target=draws)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        found = torch.rand(1)
    thread.join()
    assert found == torch.rand(1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["forward", "learn", "evaluate"])
def test_what_a_block_does_waits_too(name: str) -> None:
    """Without a message it fails, once it has its turn."""

    def act() -> None:
        with suppress(Exception):
            getattr(block, name)()

    (block, *_) = built_blocks(blueprint_of(small_recipe(), MadeUpBatches()))
    thread = threading.Thread(target=act)
    with own_generator():
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join()


def test_a_network_is_loaded_between_two_messages_of_a_run() -> None:
    """As by a callback, which runs in another thread."""
    with torch_as_new():
        thread = threading.Thread(target=draw_with_its_own)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()


def test_a_run_leaves_the_generator_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    fit(tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_learns_where_nothing_is_to_be_learned(tmp_path: Path) -> None:
    alone = fit(tmp_path / "alone")
    with torch.inference_mode():
        assert fit(tmp_path / "run") == alone


class Stuck:
    """A stage that hears no signal and stands still, twice."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.new = threading.Semaphore(0)
        """Counts what was told."""
        self.looks = threading.Semaphore(0)
        """Counts the looks at it since."""

    def run(self, job: Job, rank: int, monitor: Monitor, wish: Callable[[], Wish]) -> None:
        for _ in range(2):
            monitor.enter(Activity.START)
            assert self.new.acquire(timeout=10)
            assert all(self.looks.acquire(timeout=10) for _ in range(3))

    def tell(self, message: str, *args: object) -> None:
        self.told.append(message % args)
        self.new.release()

    def watch(self, statuses: Sequence[Status]) -> None:
        if self.told:
            self.looks.release()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Stuck:
    stuck = Stuck()
    monkeypatch.setattr(in_process, "run_rank", stuck.run)
    monkeypatch.setattr(in_process, "_TURN_S", 0.01)
    monkeypatch.setattr(in_process, "_END_S", 0.0)
    monkeypatch.setattr(in_process._log, "error", stuck.tell)
    monkeypatch.setattr("ppll.launching.stall._START_TIMEOUT_S", 0.0)
    return stuck


@pytest.fixture
def thread(stuck: Stuck, tmp_path: Path) -> threading.Thread:
    """Of a run that may stand still for 0.1 s."""
    trainer = ppll.Trainer(recipe(runtime={"stall_timeout_s": 0.1}), out=tmp_path / "run")
    job = trainer._job(RunFolder(tmp_path))
    return threading.Thread(target=run_here, args=(job, Interrupts(), stuck.watch))


def test_a_stage_that_stands_still_and_cannot_be_ended_is_named_once_and_watched_on(
    stuck: Stuck, thread: threading.Thread
) -> None:
    """As in a thread that is not the main one, or in a disk that does not answer."""
    thread.start()
    thread.join()
    assert len(stuck.told) == 2
    for message in stuck.told:
        assert "while it started: no progress for 0.1 s" in message
        assert message.endswith("It cannot be ended from here.")


def test_a_run_that_waits_for_its_turn_does_not_stand_still(
    stuck: Stuck, thread: threading.Thread
) -> None:
    with torch_as_new():
        thread.start()
        assert not stuck.new.acquire(timeout=0.3)
    thread.join()

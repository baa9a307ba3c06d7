"""What processes that torchrun has started agree on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ppll
from ppll.checkpoints.starting import begin, next_start
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import ChannelTimeout, RecipeError
from ppll.hosts.departure import Departure
from ppll.hosts.meeting import check_world
from ppll.hosts.run import Hosts
from ppll.run_folder import RunFolder
from ppll.status import Monitor
from tests.interleaving import small_recipe
from tests.test_world import EmptyStore, worlds


def world_of(num_processes: int) -> Any:
    return SimpleNamespace(size=num_processes)


def test_every_process_is_a_stage() -> None:
    recipe = Recipe.from_dict({"split": {"blocks": 3}})
    assert check_world(world_of(3), recipe, 0).runtime.stages == 3


def test_more_processes_than_blocks_are_refused_in_terms_of_processes() -> None:
    recipe = Recipe.from_dict({"split": {"blocks": 2}})
    message = r"started 3 processes, which make 3 stages, but split\.blocks = 2.*: start fewer"
    with pytest.raises(RecipeError, match=message):
        check_world(world_of(3), recipe, 0)


class Others:
    """Stands for ``Hosts`` in a process that is not the first."""

    is_first = False

    def __init__(self, facts: DataFacts) -> None:
        self._facts = facts

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def agree(self, recipe: Recipe, out: object, max_restarts: int) -> Recipe:
        return recipe

    def share_facts(self, facts: DataFacts | None) -> DataFacts:
        assert facts is None
        return self._facts


def test_only_the_first_process_looks_into_a_folder_that_is_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system remembers for a minute that a folder was not there, so others that
    had looked would not see it when the first has made it. Here it holds what cannot be read."""
    (tmp_path / "data.safetensors").write_bytes(b"damaged")
    (tmp_path / "config.toml").touch()
    folder = tmp_path / "checkpoints" / "step-00000000"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(b"damaged")
    hosts = Others(DataFacts((1, 8, 8), 3, 3))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setattr(Hosts, "join", lambda _: hosts)
    recipe = small_recipe().with_settings([f"model.weights='{tmp_path / 'none'}'"])
    trainer = ppll.Trainer(recipe, out=tmp_path, resume=True)
    assert trainer.recipe.model.weights == tmp_path / "none"


def test_who_does_not_become_ready_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppll.hosts.run._READY_S", 0.01)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    recipe = small_recipe().with_settings(["runtime.stall_timeout_s=0.2"])
    beginning = ppll.Trainer(recipe, out=tmp_path)._beginning(RunFolder.make(tmp_path))
    begin(beginning)
    world, departure = worlds(2, EmptyStore())[0], Departure()
    hosts = Hosts(world, SimpleNamespace(monitor=Monitor()), departure)
    with pytest.raises(ChannelTimeout, match=r"waited 0\.2 s for 'ready/1' of another process"):
        hosts.carry_out(next_start(beginning, 0))
    departure.remove_leftovers()

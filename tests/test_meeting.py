"""What processes that torchrun has started agree on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.hosts.meeting import check_world


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

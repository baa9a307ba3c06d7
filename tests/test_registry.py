"""A shelf: names, options with their types, and the words in which they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from ppll.errors import RecipeError
from ppll.registry import Registry


@pytest.fixture
def shelf() -> Registry[tuple[object, ...]]:
    shelf: Registry[tuple[object, ...]] = Registry("fruit", "meal")

    @shelf.register("pear", "a green one")
    def pear(size: int, *, slices: int | tuple[int, int], ripe: bool = True) -> tuple[object, ...]:
        """A pear.

        Args:
            size: In grams.
            slices: How many,
                all alike.

        Raises:
            slices: Of no interest.
        """
        return size, slices, ripe

    shelf.register("apple", "a red one")(tuple)
    return shelf


def test_things_are_built_from_arguments_and_options(shelf) -> None:
    assert shelf.build("pear", {"slices": 4}, 7) == (7, 4, True)
    assert shelf.build("pear", {"slices": 4, "ripe": False}, 7) == (7, 4, False)


def test_the_shelf_is_listed_by_name_with_its_options(shelf) -> None:
    assert [entry.name for entry in shelf] == ["apple", "pear"]
    assert shelf["pear"].options == {"slices": ..., "ripe": True}
    assert shelf["pear"].meanings == {"size": "In grams.", "slices": "How many, all alike."}
    assert shelf["pear"].summary == "a green one"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("peer", {}, r"unknown fruit 'peer'\. Did you mean 'pear'\? Known: apple, pear"),
        ("pear", {"slice": 4}, r"option of fruit 'pear'.*slice'\. Did you mean .*slices'\?"),
        ("pear", {"slices": "many"}, r"^meal\.slices: .*integer.*'many'"),
        ("pear", {"slices": [1, "a"]}, r"^meal\.slices"),
        ("pear", {}, r"^meal\.slices must be given for 'pear': How many, all alike\.$"),
        ("pear", {"slices": True}, r"^meal\.slices: must not be true or false, found True for"),
        ("pear", {"slices": 1, "size": 2}, r"option of fruit 'pear'.*size'"),
    ],
)
def test_what_cannot_be_built_is_refused(shelf, name, options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        shelf.check(name, options)


@pytest.mark.parametrize("kind", [Any, object])
def test_an_option_of_any_kind_may_be_true(kind: object) -> None:
    def build(*, choice: object) -> object:
        return choice

    build.__annotations__["choice"] = kind
    shelf: Registry[object] = Registry("thing", "method")
    shelf.register("any", "takes all")(build)
    assert shelf.build("any", {"choice": True}) is True


def _empty_shelf(section: str) -> Registry[object]:
    shelf: Registry[object] = Registry("thing", section)
    shelf.register("none", "empty")(object)
    return shelf


def test_a_key_that_needs_no_shelf_is_known_beside_the_options() -> None:
    shelf = _empty_shelf("data")
    with pytest.raises(RecipeError, match=r"data\.batchsize'\. Did you mean 'data\.batch_size'\?"):
        shelf.check("none", {"batchsize": 8})
    with pytest.raises(RecipeError, match=r"'method\.lag'\..* Known: method\.name\."):
        _empty_shelf("method").check("none", {"lag": 8})


def test_a_name_is_taken_once(shelf) -> None:
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        shelf.register("pear", "another")(tuple)

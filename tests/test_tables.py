"""Rows on a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ppll.cli.lists import list_datasets, list_models, list_recipes
from ppll.tables import print_table


def printed(width: int, names: list[str], rows: list[list[str]], left: list[str]) -> list[str]:
    file = io.StringIO()
    print_table(Console(file=file, width=width), names, rows, left=left)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_table_is_no_wider_than_it_has_to_be() -> None:
    rows = [["stem .. head", "1.5 ms"], ["x", "12.5 ms"]]
    assert printed(80, ["layers", "forward"], rows, ["layers"]) == [
        "layers        forward",
        "stem .. head   1.5 ms",
        "x             12.5 ms",
    ]


def test_text_and_names_of_columns_give_way_and_figures_do_not() -> None:
    rows = [["stage.one .. stage.two", "1.5 ms"]]
    assert printed(26, ["layers", "receive wait"], rows, ["layers"]) == [
        "layers        receive wait",
        "stage.one ..        1.5 ms",
        "stage.two",
    ]
    assert printed(5, ["layers", "receive wait"], rows, ["layers"]) == [
        "          receive",
        "layers       wait",
        "stage.one  1.5 ms",
        "..",
        "stage.two",
    ]


def test_brackets_are_no_markup() -> None:
    assert printed(80, ["replicas"], [["[1,2]"]], []) == ["replicas", "   [1,2]"]


words = st.text("abc", min_size=1, max_size=12)
cells = st.lists(words, min_size=1, max_size=4).map(" ".join)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(10, 100),
)
def test_no_word_is_cut_on_any_terminal(rows: list[list[str]], width: int) -> None:
    names = ["x", "y", "z"]
    found = "\n".join(printed(width, names, rows, ["x", "y"])).split()
    assert sorted(found) == sorted(
        [*names, *(word for row in rows for c in row for word in c.split())]
    )


@pytest.mark.parametrize("command", [list_models, list_datasets, list_recipes])
def test_lists_fit_on_eighty_columns(
    command: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80

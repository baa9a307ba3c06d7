"""Whoever wants to see how far decoding is hears it; nobody else does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ppll.data import load_dataset
from ppll.data.progress import counted, seen_by
from ppll.decoding_view import decoding_shown
from ppll.sections import DataConfig

from .conftest import encoded, random_images

pytest.importorskip("PIL")


def test_each_item_counts_when_the_next_is_asked_for() -> None:
    heard: list[tuple[str, int, int]] = []
    with seen_by(lambda *words: heard.append(words)):
        for index, item in enumerate(counted("x", "abc")):
            assert item == "abc"[index]
            assert len(heard) == index
    assert heard == [("x", 1, 3), ("x", 2, 3), ("x", 3, 3)]
    assert list(counted("x", "abc")) == ["a", "b", "c"]
    assert len(heard) == 3


def test_who_looks_on_no_longer_hears_nothing() -> None:
    heard: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match="x"), seen_by(lambda *words: heard.append(words)):
        raise ValueError("x")
    list(counted("x", "abc"))
    assert heard == []


def decode(tmp_path: Path, console: Console | None, *, delay_s: float = 0.0) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        for index, image in enumerate(random_images(3, size=8)):
            (tmp_path / split / "only" / f"{index}.png").write_bytes(encoded(image))
    with decoding_shown(console, delay_s=delay_s):
        load_dataset(DataConfig(name="image-folder", root=tmp_path, size=8))


@pytest.mark.parametrize(
    ("terminal", "delay_s", "shown"), [(True, 0, True), (True, 60, False), (False, 0, False)]
)
def test_a_bar_is_shown_on_a_terminal_if_it_takes_long(
    tmp_path: Path,
    terminal: bool,
    delay_s: float,
    shown: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    decode(tmp_path, console, delay_s=delay_s)
    written = console.file.getvalue()
    assert (f"decoding {tmp_path}/train" in written) is shown
    assert bool(written) is shown
    assert capfd.readouterr() == ("", "")


def test_without_a_console_nothing_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decode(tmp_path, None)
    assert capfd.readouterr() == ("", "")


def test_a_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        (tmp_path / split / "only" / "a.png").write_bytes(encoded(random_images(1, size=8)[0]))
    load_dataset(DataConfig(name="image-folder", root=tmp_path, size=8))
    assert capfd.readouterr() == ("", "")

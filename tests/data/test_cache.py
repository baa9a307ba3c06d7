"""The cache saves time and never does anything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppll.data.cache import Arrays, cache_folder, cached


class Decoder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([1, 2])}


@pytest.fixture
def decoder() -> Decoder:
    return Decoder()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"abc")
    return path


def the_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def check(arrays: Arrays) -> None:
    assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["x"].dtype == np.uint8
    assert arrays["y"].tolist() == [1, 2]


def test_second_call_reads_what_the_first_has_written(decoder: Decoder, source: Path) -> None:
    check(cached("name", [source], decoder))
    check(cached("name", [source], decoder))
    assert decoder.calls == 1


def _rewrite(source: Path) -> None:
    source.write_bytes(b"abcd")


def _touch(source: Path) -> None:
    os.utime(source, ns=(1, 1))


@pytest.mark.parametrize("change", [_rewrite, _touch])
def test_changed_source_is_decoded_again(
    decoder: Decoder, source: Path, change: Callable[[Path], None]
) -> None:
    cached("name", [source], decoder)
    change(source)
    cached("name", [source], decoder)
    assert decoder.calls == 2


def test_other_name_version_or_place_is_another_entry(
    decoder: Decoder, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"abc")
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    for name, sources in (("a", [source]), ("b", [source]), ("a", [other]), ("a", ["1"])):
        cached(name, sources, decoder)
    assert decoder.calls == 4


def _truncate(content: bytes) -> bytes:
    return content[:-3]


def _flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_truncate, _flip_last_bit, _empty])
def test_damaged_file_is_made_again(
    decoder: Decoder, source: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    cached("name", [source], decoder)
    file = the_file(cache)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    check(cached("name", [source], decoder))
    assert decoder.calls == 2
    assert file.read_bytes() == whole


def test_folder_that_cannot_be_written_costs_only_time(
    decoder: Decoder, source: Path, cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    check(cached("name", [source], decoder))
    check(cached("name", [source], decoder))
    assert decoder.calls == 2


def test_failed_write_leaves_nothing_behind(
    decoder: Decoder, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    check(cached("name", [source], decoder))
    assert list(cache.iterdir()) == []


def test_missing_source_is_the_decoders_to_report(decoder: Decoder, tmp_path: Path) -> None:
    check(cached("name", [tmp_path / "missing"], decoder))


def test_cached_arrays_may_be_wrapped_and_written(decoder: Decoder, source: Path) -> None:
    for _ in range(2):
        assert cached("name", [source], decoder)["x"].flags.writeable


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PPLL_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "ppll"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ppll"

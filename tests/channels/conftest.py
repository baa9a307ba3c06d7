from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path, in which a test must leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="ppll-"))
    yield folder
    folder.rmdir()


@pytest.fixture
def paths(folder: Path) -> Iterator[Path]:
    """Names for sockets, as many as a test asks for."""
    return (folder / str(number) for number in itertools.count())

"""Files with a JSON object a line, as a process may leave them that was killed (no torch)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppll.durable import open_plain

__all__ = ["read_rows"]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file; a line that is not one, as an unfinished one, is passed over.

    Raises:
        OSError: The file cannot be read, or is a link or a pipe.
    """
    with io.TextIOWrapper(open_plain(path), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row

"""How far decoding is, told to whoever wants to see it; without anybody, nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

__all__ = ["Seen", "counted", "seen_by"]

T = TypeVar("T")

Seen = Callable[[str, int, int], None]
"""Hears what is decoded, how many of it are done, and how many there are."""

_seen: Final[ContextVar[Seen | None]] = ContextVar("seen", default=None)


@contextmanager
def seen_by(seen: Seen) -> Iterator[None]:
    """Tell ``seen`` of everything that is decoded meanwhile."""
    token = _seen.set(seen)
    try:
        yield
    finally:
        _seen.reset(token)


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, one after the other; each counts as done when the next is asked for."""
    seen = _seen.get()
    for index, item in enumerate(items):
        yield item
        if seen is not None:
            seen(what, index + 1, len(items))

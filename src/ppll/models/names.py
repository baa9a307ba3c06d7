"""What the parts of a network are called."""

from __future__ import annotations

__all__ = ["qualified"]


def qualified(prefix: str, name: str) -> str:
    """What a part's ``name`` is called in the whole: behind a dot, unless either is empty."""
    return ".".join(part for part in (prefix, name) if part)

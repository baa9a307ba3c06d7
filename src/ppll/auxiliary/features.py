"""What auxiliary networks read at a cut: maps, token rows or vectors."""

from __future__ import annotations

from ppll.errors import ModelError

__all__ = ["unreadable"]


def unreadable(auxiliary: str, feature_shape: tuple[int, ...]) -> ModelError:
    """The error for features of a shape that an auxiliary network has no reading for."""
    return ModelError(
        f"auxiliary network {auxiliary!r} reads maps (C, H, W), token rows (T, D) and vectors (D), "
        f"found features of shape {feature_shape} at a cut: cut elsewhere (split.cuts) or choose "
        "another method.auxiliary."
    )

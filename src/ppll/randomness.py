"""Randomness as a function of its arguments, never of history (no torch).

Every random number of a run is a hash of where it is used: the seed and the name of a parameter;
the seed, the epoch and the index of a sample; the seed, the block and the step. So the same
numbers come out whichever process asks for them, in whatever order, and a checkpoint carries no
generator state.

The mixing function is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["fold", "fold_array", "uniform_integers", "uniforms"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def fold(*parts: int | str) -> int:
    """Hash numbers and names into 64 bits; the order of the parts counts.

    Example:
        >>> fold(0, "stem.conv.weight") == fold(0, "stem.conv.weight")
        True
        >>> fold(0, 1) == fold(1, 0)
        False
    """
    state = 0
    for part in parts:
        if isinstance(part, str):
            # The name of a file may hold bytes that are no text.
            encoded = part.encode(errors="surrogateescape")
            part = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
        state = _mix(state ^ (part & _MASK))
    return state


def fold_array(key: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """``fold`` of a key with each of many whole numbers at once: 64 bits a value."""
    with np.errstate(over="ignore"):
        mixed = (np.uint64(key) ^ values.astype(np.uint64)) + np.uint64(_GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MIX_1)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MIX_2)
        return mixed ^ (mixed >> np.uint64(31))


def uniform_integers(key: int, values: npt.NDArray[np.int64], high: int) -> npt.NDArray[np.int64]:
    """One whole number in ``[0, high)`` for each of ``values``, a function of key and value."""
    bits = fold_array(key, values) >> np.uint64(32)
    return ((bits * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def uniforms(key: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in ``[0, 1)`` for each of ``values``, a function of key and value."""
    bits = fold_array(key, values) >> np.uint64(11)
    return bits.astype(np.float64) * np.float64(2.0**-53)

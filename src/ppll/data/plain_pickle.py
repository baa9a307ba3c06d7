"""Texts, numbers, lists, dicts and arrays of bytes out of a pickle that is read, never run.

``pickletools`` tells a pickle's operations without carrying out any. Those that put plain values
together are carried out here; no name in a pickle is ever looked up, so nothing is imported or
called. What numpy writes for an array of bytes is known and compared word by word.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppll.errors import DataError

__all__ = ["read_plain"]

Stack = list[Any]


@dataclass(frozen=True)
class _Name:
    """Of something that pickle would import: module and name."""

    text: str


@dataclass(frozen=True)
class _ByteType:
    """Stands for numpy's uint8."""


@dataclass(eq=False)
class _Array:
    """Stands for an array that is filled later."""

    values: npt.NDArray[np.uint8] | None = None


_NEW_ARRAY: Final = ["numpy.core.multiarray _reconstruct", (_Name("numpy ndarray"), (0,), "b")]
_NEW_BYTE_TYPE: Final = ["numpy dtype", ("u1", 0, 1)]
_BYTE_TYPE_STATE: Final = (3, "|", None, None, None, -1, -1, 0)


def read_plain(content: bytes) -> dict[str, Any]:
    """The dict in a pickle of protocol 2, as Python 2 wrote it.

    Returns:
        Its entries: whole numbers, texts (one character a byte), none, false, tuples, lists and
        dicts of these, and arrays of uint8.

    Raises:
        DataError: It is no whole pickle, or holds anything else; the message is the end of a
            sentence that begins with where it comes from.
    """
    reader = _Reader()
    try:
        for operation, argument, _ in pickletools.genops(content):
            reader.do(operation.name, argument)
        (found,) = reader.stack
        return {key: v.values if isinstance(v, _Array) else v for key, v in found.items()}
    except DataError:
        raise
    except Exception as error:  # damage shows as whatever it leads to first
        what = f"{type(error).__name__}: {error!s:.100}"
        raise DataError(f"is not a whole pickle of a dict ({what}).") from None


class _Reader:
    """Carries out one operation after the other on a stack."""

    def __init__(self) -> None:
        self.stack: Stack = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """Carry out an operation, or refuse it."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _COMBINE:
            self._combine(name)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name == "GLOBAL":
            self.stack.append(_Name(argument))
        elif name not in ("PROTO", "STOP"):
            raise DataError(f"holds more than arrays, texts, lists and dicts: {name}.")

    def _combine(self, name: str) -> None:
        number, combine = _COMBINE[name]
        start = self._marks.pop() if number is None else len(self.stack) - number
        if start < 0:
            raise IndexError("too little on the stack")
        taken = self.stack[start:]
        del self.stack[start:]
        combine(self.stack, taken)


def _tuple(stack: Stack, taken: Stack) -> None:
    stack.append(tuple(taken))


def _extend(stack: Stack, taken: Stack) -> None:
    stack[-1].extend(taken)


def _update(stack: Stack, taken: Stack) -> None:
    keys = taken[::2]
    # A tuple would be hashed, tuples within it and theirs: too deep, or for ever.
    if not all(isinstance(key, str | int) for key in keys):
        raise DataError("has a key of a dict that is neither text nor a whole number.")
    stack[-1].update(zip(keys, taken[1::2], strict=True))


def _make(stack: Stack, taken: Stack) -> None:
    name, arguments = taken
    if [name.text, arguments] == _NEW_ARRAY:
        stack.append(_Array())
    elif [name.text, arguments] == _NEW_BYTE_TYPE:
        stack.append(_ByteType())
    else:
        raise DataError(f"would call {name.text!r:.100}: only arrays of bytes are read.")


def _fill(stack: Stack, taken: Stack) -> None:
    (state,), target = taken, stack[-1]
    if isinstance(target, _Array):
        version, shape, kind, by_columns, values = state
        if (version, kind, by_columns) != (1, _ByteType(), False):
            raise DataError("holds an array of another kind than uint8, row by row.")
        target.values = np.frombuffer(values.encode("latin-1"), np.uint8).reshape(shape)
    elif (target, state) != (_ByteType(), _BYTE_TYPE_STATE):
        raise DataError("sets the state of something else than an array.")


_VALUES: Final = frozenset(
    {"NONE", "BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"}
)
_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "NEWFALSE": bool,
}
_COMBINE: Final[dict[str, tuple[int | None, Callable[[Stack, Stack], None]]]] = {
    "TUPLE1": (1, _tuple),
    "TUPLE2": (2, _tuple),
    "TUPLE3": (3, _tuple),
    "TUPLE": (None, _tuple),  # everything since the last mark
    "APPEND": (1, _extend),
    "APPENDS": (None, _extend),
    "SETITEM": (2, _update),
    "SETITEMS": (None, _update),
    "REDUCE": (2, _make),
    "BUILD": (1, _fill),
}

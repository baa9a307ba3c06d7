"""Input that was right before something happened to it, and noise.

Whatever comes in from outside gives a right answer or an error of ``ppll.errors``: no test here
lets another exception pass, and none lets a reader wait. ``PPLL_FUZZ=50 pytest tests/fuzz`` tries
fifty times as many examples.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_TIMES = int(os.environ.get("PPLL_FUZZ", "1"))


def fuzz(max_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same examples in every run; a folder may serve all of them."""
    return settings(
        max_examples=max_examples * _TIMES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


HUGE = [2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**400, -(2**63), -(10**30)]
NUMBERS = [0, 1, -1, 2, 3, 7, *HUGE, 0.5, 1.5, -0.0, 1e300, 1e-300]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "",
    "x",
    "\0",
    "ü" * 40,
    "a" * 5000,
    "null",
    "NaN",
    "1",
    "__class__",
    "../../outside",
    "/etc/passwd",
    "~",
    "literal",
    "tuple",
    "\x1b[31m",
    "\u202e",
    "\U0001f600",
]


def nested(depth: int, inner: Any = 0) -> list[Any]:
    """A list in a list in a list."""
    for _ in range(depth):
        inner = [inner]
    return inner


WEIRD: list[Any] = [
    *NUMBERS,
    *NOT_FINITE,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [1],
    [2**62, 4],
    {"a": {"b": []}},
    nested(30),
]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a tree, as what holds it and its key there."""
    keys: Sequence[Any] = ()
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, list):
        keys = range(len(tree))
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


@st.composite
def mutated_tree(draw: st.DrawFn, tree: Any, values: Sequence[Any] = WEIRD) -> Any:
    """A tree of which up to three keys were dropped, renamed, doubled, swapped or retyped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "replace", "drop", "rename", "swap", "wrap"]))
        if what == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(values)))
        elif what == "drop":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([*TEXTS, f"{key}s", str(key)[1:]]))] = holder.pop(key)
        elif what == "swap":
            other, its_key = draw(st.sampled_from(places))
            holder[key], other[its_key] = copy.deepcopy((other[its_key], holder[key]))
        else:
            holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}]))
    return tree


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """Bytes of which some were flipped, set, cut out, put in or repeated."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(found)))
        what = draw(st.sampled_from(["flip", "set", "cut", "put", "repeat", "end"]))
        if what == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            with_ = draw(st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\x7f", bytes(8)]))
            found[at : at + len(with_)] = with_
        elif what == "cut":
            del found[at : at + draw(st.integers(1, 40))]
        elif what == "put":
            found[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif what == "repeat":
            found[at:at] = found[at : at + draw(st.integers(1, 40))]
        elif what == "end":
            del found[at:]
    return bytes(found)

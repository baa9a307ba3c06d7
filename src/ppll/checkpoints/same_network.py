"""Whether a network is the one that a checkpoint is of: not by names and shapes alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from typing import Final

from ppll.checkpoints.manifest import NetworkRecord
from ppll.checkpoints.resume import LAYERS, Change
from ppll.data_facts import DataFacts
from ppll.environment import package_versions

__all__ = ["other_layers", "record_of"]

_log = logging.getLogger(__name__)

_PACKAGES: Final = ("ppll", "torch", "timm", "torchvision", "transformers")
"""In whose words layers are described."""


def record_of(layers: Mapping[str, str], facts: DataFacts) -> NetworkRecord:
    """What a manifest says of a network.

    Args:
        layers: What ``describe_layers`` says of it.
        facts: What it is trained on.
    """
    return NetworkRecord(
        layers=dict(layers),
        packages=package_versions(_PACKAGES),
        mean=facts.mean,
        std=facts.std,
    )


def other_layers(
    before: NetworkRecord | None, now: Mapping[str, str], unsaved: Collection[str] = ()
) -> Change | None:
    """The first layer that is another one than was trained, and how many; none if all are the same.

    Where other versions of what describes them may be the reason, it is a warning and none.

    Args:
        before: What the checkpoint says; older ones say nothing.
        now: What ``describe_layers`` says of the network.
        unsaved: Layers that the checkpoint does not hold anyway.
    """
    if before is None:
        return None
    old, new = _placed(before.layers), _placed(now)
    names = [
        n for n in dict.fromkeys([*new, *old]) if n not in unsaved and old.get(n) != new.get(n)
    ]
    if not names:
        return None
    was, found = _first_difference(names[0], old.get(names[0], ""), new.get(names[0], ""))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    change = Change(LAYERS, was, found + more)
    if versions := _other_versions(before):
        _log.warning("the network may be another one, by other versions (%s): %s", versions, change)
        return None
    return change


def _other_versions(before: NetworkRecord) -> str:
    """The packages that are of another version now, in words; empty if none is."""
    now = package_versions(_PACKAGES)
    return ", ".join(
        f"{name} was {before.packages.get(name)}, is {now.get(name)}"
        for name in _PACKAGES
        if before.packages.get(name) != now.get(name)
    )


def _placed(layers: Mapping[str, str]) -> dict[str, str]:
    """What every layer is and, behind it, the place where it stands."""
    return {name: f"{text}\nlayer {i}" for i, (name, text) in enumerate(layers.items())}


def _first_difference(layer: str, before: str, now: str) -> tuple[str, str]:
    """The first lines that differ of what a layer was and is."""
    pairs: Iterator[tuple[str, str]]
    pairs = zip_longest(before.splitlines(), now.splitlines(), fillvalue="nothing")
    first = next((old, new) for old, new in pairs if old != new)
    return f"{layer}: {first[0]}", f"{layer}: {first[1]}"

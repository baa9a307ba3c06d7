"""Blocks dealt to stages (no torch)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ppll.errors import RecipeError
from ppll.mesh import Mesh

__all__ = ["mesh_of", "mesh_of_size", "meshes_of", "place", "place_alike"]


def place(num_items: int, num_places: int) -> tuple[range, ...]:
    """Deal a row into contiguous runs of nearly equal length, the later ones longer.

    Example:
        >>> [len(run) for run in place(15, 4)]
        [3, 4, 4, 4]
    """
    bounds = [num_items * i // num_places for i in range(num_places + 1)]
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds))


def place_alike(replicas: Sequence[int], num_stages: int) -> tuple[range, ...]:
    """Deal blocks to stages, so that all blocks of a stage have as many replicas.

    Args:
        replicas: Of every block.
        num_stages: As many stages as there are runs of blocks that are alike, or more.

    Raises:
        RecipeError: No stages can be so.

    Example:
        >>> [list(blocks) for blocks in place_alike([1, 1, 1, 2], 3)]
        [[0], [1, 2], [3]]
    """
    runs = [len(list(run)) for _, run in itertools.groupby(replicas)]
    if not len(runs) <= num_stages <= len(replicas):
        raise _refuse_stages(replicas, num_stages)
    shares = [1] * len(runs)
    while sum(shares) < num_stages:
        longest = max(range(len(runs)), key=lambda run: runs[run] / shares[run])
        shares[longest] += 1
    starts = itertools.accumulate(runs, initial=0)
    return tuple(
        range(start + part.start, start + part.stop)
        for start, length, share in zip(starts, runs, shares, strict=False)
        for part in place(length, share)
    )


def _refuse_stages(replicas: Sequence[int], num_stages: int) -> RecipeError:
    """What is wrong with so many stages for blocks with these replicas."""
    least, most = _least(replicas), len(replicas)
    return RecipeError(
        f"cannot place {most} block(s) with train.replicas = {list(replicas)} on "
        f"{num_stages} stage(s) (runtime.stages), as all blocks of a stage have equally many: "
        f"ask for {f'{least} to ' if least < most else ''}{most} stages."
    )


def mesh_of(replicas: int | Sequence[int], num_stages: int) -> Mesh:
    """All processes of a run with so many stages.

    Args:
        replicas: Of all blocks, or of every one.
        num_stages: As ``place_alike`` allows.

    Raises:
        RecipeError: No stages can be so.
    """
    if isinstance(replicas, int):
        return Mesh.of(num_stages, replicas)
    return Mesh(tuple(replicas[blocks.start] for blocks in place_alike(replicas, num_stages)))


def mesh_of_size(replicas: int | Sequence[int], num_ranks: int) -> Mesh | None:
    """The stages that so many processes make; none where they make none."""
    if isinstance(replicas, int):
        stages, left = divmod(num_ranks, replicas)
        return None if left else Mesh.of(stages, replicas)
    return next((mesh for mesh in meshes_of(replicas) if mesh.size == num_ranks), None)


def meshes_of(replicas: Sequence[int]) -> list[Mesh]:
    """All processes of a run, for every number of stages that its blocks may have."""
    return [mesh_of(replicas, num) for num in range(_least(replicas), len(replicas) + 1)]


def _least(replicas: Sequence[int]) -> int:
    """Stages that blocks with these replicas need: one for each run of blocks that are alike."""
    return len(list(itertools.groupby(replicas)))

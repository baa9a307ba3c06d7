"""What every rank of an end-to-end pipeline does in one optimizer step, in order (no torch).

The lists are those of ``torch.distributed.pipelining`` (2.13), which are those of the papers:

- ``gpipe`` (Huang et al., 2018): all forward passes, then all backward passes;
- ``1f1b`` (Narayanan et al., PipeDream, 2019): one of each in turn, at most p in flight;
- ``interleaved`` (Narayanan et al., Megatron-LM, 2021): 1F1B with several chunks a rank;
- ``zero-bubble`` (Qi et al., 2023, ZB1P): backward passes in two halves, of which the one for the
  weights fills what would be bubbles;
- ``zero-bubble-v`` (the same, section 6, ZB-V): a rank's two chunks lie in a V, so that the last
  chunk is where the first is.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from ppll.errors import RecipeError

__all__ = ["CHUNKS_A_RANK", "Action", "Lists", "chunks_of_ranks", "pipeline_actions"]

CHUNKS_A_RANK: Final = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved": 2,
    "zero-bubble": 2,
    "zero-bubble-v": 2,
}
"""Every pipeline and the chunks that a rank of it has as we run it."""

_ANY_NUMBER: Final = ("interleaved", "zero-bubble")
"""Can deal another number of chunks a rank, too; all their micro-batches go in rounds."""


class Action(NamedTuple):
    """One thing that a rank does.

    Attributes:
        kind: ``F`` forward, ``B`` backward, ``I`` its half for the input, ``W`` for the weights.
        chunk: Of which chunk of the network.
        microbatch: On which micro-batch.
    """

    kind: str
    chunk: int
    microbatch: int


Lists = tuple[tuple[Action, ...], ...]
"""Every rank's actions, in order."""

_Chunks = Sequence[int]
_Deal = Callable[[_Chunks, int, int], list[Action]]


def pipeline_actions(
    schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int
) -> Lists:
    """What every rank of a pipeline does in one step.

    Raises:
        RecipeError: The counts do not fit the schedule.
    """
    _check(schedule, num_ranks, num_chunks, num_microbatches)
    deal = _DEALS[schedule]
    ranks = chunks_of_ranks(schedule, num_ranks, num_chunks)
    return tuple(tuple(deal(chunks, num_ranks, num_microbatches)) for chunks in ranks)


def chunks_of_ranks(schedule: str, num_ranks: int, num_chunks: int) -> tuple[tuple[int, ...], ...]:
    """The chunks of every rank of a pipeline, in forward order.

    Example:
        >>> chunks_of_ranks("zero-bubble", 2, 4), chunks_of_ranks("zero-bubble-v", 2, 4)
        (((0, 2), (1, 3)), ((0, 3), (1, 2)))
    """
    if schedule == "zero-bubble-v":
        return tuple((rank, num_chunks - 1 - rank) for rank in range(num_ranks))
    return tuple(tuple(range(rank, num_chunks, num_ranks)) for rank in range(num_ranks))


def _gpipe(chunks: _Chunks, _num_ranks: int, num_microbatches: int) -> list[Action]:
    return [Action(kind, chunks[0], i) for kind in "FB" for i in range(num_microbatches)]


def _in_turn(hops: int, *, halves: bool = False) -> _Deal:
    """The family of 1F1B: some forward passes ahead, then a backward pass after each.

    Args:
        hops: By how many forward passes a rank is further ahead than the next.
        halves: Whether to put off the halves for the weights, on rank r by r backward passes.
    """

    def deal(chunks: _Chunks, num_ranks: int, num_microbatches: int) -> list[Action]:
        rank = chunks[0]
        size = num_microbatches // _num_rounds(num_ranks, num_microbatches)
        everything = range(num_microbatches)
        rounds = [everything[i : i + size] for i in everything[::size]]
        forward = _pass("F", chunks, rounds)
        backward = _pass("I" if halves else "B", chunks[::-1], rounds)
        weights = _pass("W", chunks[::-1], rounds) if halves else []
        ahead = (len(chunks) - 1) * size + hops * (num_ranks - 1 - rank)
        actions = forward[:ahead]
        for i, action in enumerate(backward):
            actions += [*forward[ahead + i : ahead + i + 1], action]
            actions += weights[max(0, i - rank) : max(0, i - rank + 1)]
        return actions + weights[max(0, len(backward) - rank) :]

    return deal


def _pass(kind: str, chunks: _Chunks, rounds: Sequence[range]) -> list[Action]:
    """Every chunk in turn for the micro-batches of a round, then of the next."""
    return [Action(kind, chunk, i) for row in rounds for chunk in chunks for i in row]


def _num_rounds(num_ranks: int, num_microbatches: int) -> int:
    return max(1, num_microbatches // num_ranks)


def _in_a_v(chunks: _Chunks, num_ranks: int, num_microbatches: int) -> list[Action]:
    """ZB-V, dealt to as many micro-batches as fill the pipeline; those that are not there go."""
    rank, steps_to_turn = chunks[0], num_ranks - chunks[0]
    num_steady = max(num_ranks - 1, num_microbatches - num_ranks)
    order = [  # of kinds, each on the rank's chunk 0 or 1
        *["F0"] * (2 * steps_to_turn - 1),
        *["F1", "F0"] * rank,
        *["F1", "I1", "W1"] * steps_to_turn,
        *["F0", "I0", "W0", "F1", "I1", "W1"] * num_steady,
        *["I0", "I1"] * rank,
        *["I0", "W0"] * steps_to_turn,
        *["W1"] * rank,
        *["W0"] * rank,
    ]
    numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    actions = [Action(name[0], chunks[int(name[1])], next(numbers[name])) for name in order]
    return [action for action in actions if action.microbatch < num_microbatches]


_DEALS: Final[dict[str, _Deal]] = {
    "gpipe": _gpipe,
    "1f1b": _in_turn(hops=1),
    "interleaved": _in_turn(hops=2),
    "zero-bubble": _in_turn(hops=1, halves=True),
    "zero-bubble-v": _in_a_v,
}


def _check(schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> None:
    problem = _problem(schedule, num_ranks, num_chunks, num_microbatches)
    if problem:
        raise RecipeError(
            f"{schedule} cannot deal {num_chunks} chunk(s) and {num_microbatches} micro-batch(es) "
            f"to {num_ranks} rank(s): {problem}."
        )


def _problem(schedule: str, num_ranks: int, num_chunks: int, num_microbatches: int) -> str:
    """What to change; nothing where all is well."""
    in_rounds = schedule in _ANY_NUMBER
    if min(num_ranks, num_chunks, num_microbatches) < 1:
        return "give 1 or more of each"
    if num_chunks % num_ranks:
        return f"give a multiple of {num_ranks} chunks"
    if not in_rounds and num_chunks != CHUNKS_A_RANK[schedule] * num_ranks:
        one = CHUNKS_A_RANK[schedule] == 1
        return "merge the chunks of a rank into one" if one else f"give {2 * num_ranks} chunks"
    if schedule == "1f1b" and num_microbatches < num_ranks:
        return f"give at least {num_ranks} micro-batches"
    num_rounds = _num_rounds(num_ranks, num_microbatches)
    if in_rounds and num_microbatches % num_rounds:
        return (
            f"it deals micro-batches in rounds of {num_ranks} or more, all alike: ask for "
            f"{num_ranks * num_rounds} or {num_ranks * (num_rounds + 1)}"
        )
    return ""

"""What a timeline says: who worked, who waited, which stage holds up the others (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ppll.tracing.files import RankTrace, Start, Sum, Totals

__all__ = ["BlockTimes", "StageSummary", "Summary", "summarize"]

_AVERAGE: Final = "average wait"
_MAKE: Final = "make batch"
_WAITS: Final = ("receive wait", "send wait", _AVERAGE)


@dataclass(frozen=True)
class BlockTimes:
    """Mean seconds that a block took for a training message."""

    block: int
    forward_s: float
    learn_s: float


@dataclass(frozen=True)
class StageSummary:
    """What one stage did with its time, from the first batch to the stop.

    Attributes:
        stage: Which.
        blocks: What its blocks took.
        replicas: Processes that shared its messages, as far as they left something behind.
        seconds: All of it.
        busy: Share in which it did not wait for another stage.
        receive_wait: Share in which it waited for the stage before; the first one, for data.
        send_wait: Share in which it waited for the next stage to take what it had.
        average_wait: Share in which it waited for its other replicas' gradients.
        evaluate: Share for evaluations without their forwards: losses, accuracies, sending.
        checkpoint: Share for checkpoints.
        make_batches: Share for making batches for training; 0 where a thread makes them ahead.
        work_s: Seconds of work for a training message: making it, forward, sending, learning.
        inbox_fill: Messages in its inbox, on average, when it took one; none where it was killed,
            and where it makes them itself.
        capacity: Messages that a channel holds.
        cpu: Processor time of its thread as a share of its busy time; none where it was killed.
        num_dropped: Spans that were not recorded, as there were too many.
    """

    stage: int
    blocks: tuple[BlockTimes, ...]
    replicas: int
    seconds: float
    busy: float
    receive_wait: float
    send_wait: float
    average_wait: float
    evaluate: float
    checkpoint: float
    make_batches: float
    work_s: float
    inbox_fill: float | None
    capacity: int
    cpu: float | None
    num_dropped: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """What all stages did in one start of a run.

    Attributes:
        stages: The first replica of each that left something behind.
        hosts: Processes on every host, all replicas included, as far as they left something behind.
        start: Which start, of those that left something behind.
        newest_start: Which is the newest of them.
    """

    stages: tuple[StageSummary, ...]
    hosts: tuple[int, ...]
    start: int
    newest_start: int

    @property
    def which_start(self) -> str | None:
        """Which start it tells of, in words, where that is not the newest."""
        if self.start == self.newest_start:
            return None
        return (
            f"Of start {self.start}: start {self.newest_start}, the newest, has written down no "
            f"batch that it learned from."
        )

    @property
    def num_processes(self) -> int:
        """On all hosts."""
        return sum(self.hosts)

    @property
    def has_replicas(self) -> bool:
        """Whether a stage has more than one; it may be the only one that left something behind."""
        return any(stage.replicas > 1 or stage.average_wait for stage in self.stages)

    @property
    def bottleneck(self) -> StageSummary:
        """The stage with the most work for a message: the others wait for it."""
        return max(self.stages, key=lambda stage: stage.work_s)


def summarize(start: Start) -> Summary:
    """What the ranks of a start did with their time."""
    hosts = Counter(trace.clock for trace in (*start.ranks, *start.others))
    stages = tuple(_stage(trace, start.others) for trace in start.ranks)
    return Summary(stages, tuple(hosts.values()), start.index, start.newest)


def _stage(trace: RankTrace, others: Sequence[RankTrace]) -> StageSummary:
    totals = trace.totals
    sums = totals.sums if totals is not None else _sums_of_spans(trace)
    by_name: dict[str, float] = {}
    for part in sums:
        by_name[part.name] = by_name.get(part.name, 0.0) + part.seconds
    by_name.pop("start", None)
    seconds = sum(by_name.values())
    busy_s = seconds - sum(by_name.get(name, 0.0) for name in _WAITS)
    blocks = tuple(_block(sums, block) for block in trace.blocks)
    return StageSummary(
        stage=trace.stage,
        blocks=blocks,
        replicas=1 + sum(other.blocks == trace.blocks for other in others),
        seconds=seconds,
        busy=_share(busy_s, seconds),
        receive_wait=_share(by_name.get("receive wait", 0.0), seconds),
        send_wait=_share(by_name.get("send wait", 0.0), seconds),
        average_wait=_share(by_name.get(_AVERAGE, 0.0), seconds),
        evaluate=_share(by_name.get("evaluate", 0.0), seconds),
        checkpoint=_share(by_name.get("checkpoint", 0.0), seconds),
        make_batches=_share(by_name.get(_MAKE, 0.0), seconds),
        work_s=sum(b.forward_s + b.learn_s for b in blocks)
        + sum(_mean(sums, name, -1) for name in (_MAKE, "send")),
        inbox_fill=_mean_fill(totals) if totals is not None and _MAKE not in by_name else None,
        capacity=trace.capacity,
        cpu=_share(totals.cpu_s, busy_s) if totals is not None else None,
        num_dropped=totals.num_dropped if totals is not None else 0,
    )


def _block(sums: Sequence[Sum], block: int) -> BlockTimes:
    """What a block took, by the number of its messages.

    Waiting for other replicas cuts a forward or a learning step in two. Of all such pieces, those
    that are left when every wait is taken for a cut are two for each training message and one for
    each message of an evaluation. Older traces count the forwards of both as one.
    """
    forward, learn, tested, evaluate, waits = (
        next((s for s in sums if (s.name, s.block) == (name, block)), None)
        for name in ("forward", "learn", "evaluation forward", "evaluate", _AVERAGE)
    )
    num_tested = evaluate.num if evaluate is not None else 0
    num_whole = sum(s.num for s in (forward, learn, tested) if s) - (waits.num if waits else 0)
    num_learned = (num_whole - num_tested) / 2
    num_forward = num_learned + (0 if tested else num_tested)
    return BlockTimes(block, _each(forward, num_forward), _each(learn, num_learned))


def _each(found: Sum | None, num: float) -> float:
    return found.seconds / max(1, num) if found is not None else 0.0


def _mean(sums: Sequence[Sum], name: str, block: int) -> float:
    found = next((s for s in sums if (s.name, s.block) == (name, block)), None)
    return _each(found, found.num) if found is not None else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean_fill(totals: Totals) -> float | None:
    num = sum(totals.inbox_fills)
    return sum(n * times for n, times in enumerate(totals.inbox_fills)) / num if num else None


def _sums_of_spans(trace: RankTrace) -> tuple[Sum, ...]:
    """Of a rank that was killed, what it had recorded until then."""
    found: dict[tuple[str, int], list[float]] = {}
    for span in trace.spans:
        found.setdefault((span.name, span.block), []).append(max(0.0, span.end_s - span.start_s))
    return tuple(_sum(key, lengths) for key, lengths in found.items())


def _sum(key: tuple[str, int], lengths: Sequence[float]) -> Sum:
    name, block = key
    fields: Mapping[str, Any] = {"name": name, "block": block}
    return Sum.model_validate({**fields, "num": len(lengths), "seconds": sum(lengths)})

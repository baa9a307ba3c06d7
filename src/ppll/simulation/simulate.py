"""What a pipeline of stages will take: discrete events, deterministic, no torch.

A stage works on a message until its features are ready, sends them (it waits while the channel is
full), learns, waits until its transfer has ended, gives its input slot back and takes the next
message; see ``worker.py``. (Where a network buffers what it sends, done does not wait for the
transfer.) With message n of stage s and channels of C slots, in seconds::

    start[s, n] = max(arrival[s, n], done[s, n - 1])
    ready[s, n] = start[s, n] + before_send
    send[s, n]  = max(ready[s, n], done[s + 1, n - C] + latency)
    done[s, n]  = send[s, n] + max(after_send, transfer)
    leave[s, n] = max(send[s, n], leave[s, n - 1] + transfer)
    arrival[s + 1, n] = leave[s, n] + transfer + latency

These are linear in the algebra of (max, +), which is used twice (Baccelli, Cohen, Olsder and
Quadrat, "Synchronization and Linearity", 1992). All events on a diagonal, n + s constant, are
independent and computed at once. Without jitter the times of C messages later are, after a while,
those of C messages before plus a constant; from then on whole periods are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ppll.errors import RecipeError
from ppll.randomness import fold, fold_array
from ppll.simulation.links import Link, Pipeline, StageTimes, check_amount

__all__ = ["Link", "Pipeline", "Simulation", "StageTimes", "check_amount", "simulate"]

_Row = npt.NDArray[np.float64]

_NEVER: Final = -1e300
"""A time so early that adding seconds leaves it as it is; infinity would make NaN of waits."""
_DRAWN_AT_ONCE: Final = 4096
"""Numbers drawn together: few enough that memory for them is not asked of the system anew."""
_STEPS_BETWEEN_LOOKS: Final = 64
_SAME: Final = 1e-9
"""Relative difference up to which two increments are one, apart by rounding."""


@dataclass(frozen=True)
class Simulation:
    """What a pipeline takes.

    Waits and shares count from a stage's first message on, as in ``result.json``.

    Attributes:
        seconds: Until every stage is done with all batches.
        seconds_per_batch: From the last stage's first completion to its last, by batch.
        busy_fraction: Of every stage, the share of time in which it did not wait for another.
        receive_wait_s: Of every stage, seconds for which its channel was empty.
        send_wait_s: Of every stage, seconds for which the next channel was full.
    """

    seconds: float
    seconds_per_batch: float
    busy_fraction: tuple[float, ...]
    receive_wait_s: tuple[float, ...]
    send_wait_s: tuple[float, ...]


def simulate(pipeline: Pipeline, num_batches: int) -> Simulation:
    """What ``num_batches`` batches take, from an empty pipeline until it is empty again.

    Raises:
        RecipeError: There is no batch.
    """
    if num_batches < 1:
        raise RecipeError(f"cannot simulate {num_batches} batches: ask for 1 or more.")
    front = _Front(pipeline, num_batches)
    while front.step < front.num_steps:
        front.advance(max(_STEPS_BETWEEN_LOOKS, front.capacity))
        if pipeline.jitter == 0:
            front.skip_periods()
    return front.result()


class _Work:
    """What every stage needs for every batch, a column a stage.

    Column 0 is the loader: a stage that only sends, over a link as slow as loading is.
    """

    def __init__(self, pipeline: Pipeline, num_batches: int, skew: int) -> None:
        stages = (StageTimes(0, 0), *pipeline.stages)
        links = (Link(), *pipeline.links, Link())
        slower = np.array([pipeline.stragglers.get(i - 1, 1.0) for i in range(len(stages))])
        pairs = zip(stages, links, strict=True)
        self.transfer = np.array([link.transfer_s(stage.features_bytes) for stage, link in pairs])
        self.transfer[0] = pipeline.load_s
        self.latency = np.array([link.latency_s for link in links])
        self._before = slower * [stage.before_send_s for stage in stages]
        self._after = slower * [stage.after_send_s for stage in stages]
        self._copy = np.where([link.overlaps for link in links], 0.0, self.transfer)
        self._held = np.where([link.buffers for link in links], 0.0, self.transfer)
        self._root = 1 / np.array([1, *pipeline.stage_replicas])
        self._jitter, self._key = pipeline.jitter, fold(pipeline.seed, "jitter")
        self._num_batches = num_batches
        self._lag = np.arange(len(stages)) // skew
        self._stage_code = np.arange(-1, len(pipeline.stages)) << 40
        self.occupied = num_batches * (self._before + self._hold(1.0)) * (pipeline.jitter == 0)
        """Seconds of work and transfer, by column, of the batches so far (all, without jitter)."""

    def rows(self, first_step: int, num_steps: int) -> tuple[_Row, _Row]:
        """Seconds from start to ready and from send to done, a row a step."""
        if self._jitter == 0:
            shape = (num_steps, len(self._lag))
            return np.broadcast_to(self._before, shape), np.broadcast_to(self._hold(1.0), shape)
        batches = np.arange(first_step, first_step + num_steps)[:, None] - self._lag
        factor = (fold_array(self._key, self._stage_code + batches) >> np.uint64(11)).astype(float)
        if self._root.min() < 1:  # The largest of several uniform numbers is one's root.
            factor = (factor * 2.0**-53) ** self._root * 2.0**53
        factor *= self._jitter * 2.0**-52
        factor += 1 - self._jitter
        hold = self._hold(factor)
        before = np.multiply(factor, self._before, out=factor)
        self.occupied += np.sum(before + hold, axis=0, where=self._takes_part(batches))
        return before, hold

    def _hold(self, factor: _Row | float) -> _Row:
        held: _Row = factor * self._after
        held += self._copy
        np.maximum(held, self._held, out=held)
        return held

    def _takes_part(self, batches: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | bool:
        """Which of the batches there are; columns fill up and run empty at the ends."""
        if batches[0, -1] >= 0 and batches[-1, 0] < self._num_batches:
            return True
        return (batches >= 0) & (batches < self._num_batches)


class _Front:
    """All stages on one diagonal of the table of events.

    In step k, column j takes message k - j // skew. The skew is 1; channels of one slot make
    neighbours wait for each other within a step, so there it is 2 and a step has two phases: even
    columns, then odd ones. Columns before their first message compute with ``_NEVER``, those after
    their last one go on with messages that nobody counts.
    """

    def __init__(self, pipeline: Pipeline, num_batches: int) -> None:
        self.step = 0
        self.capacity = min(pipeline.capacity, num_batches)
        self._skew = 1 if self.capacity > 1 else 2
        self._num_batches = num_batches
        self._work = _Work(pipeline, num_batches, self._skew)
        width = len(pipeline.stages) + 1
        self._num_filling = 1 + (width - 1) // self._skew
        self.num_steps = num_batches - 1 + self._num_filling
        self.start, self.ready, self.send, self.full_wait = np.zeros((4, width))
        self.free = np.full(width, _NEVER)
        self.free[0] = 0.0
        self.leave = np.full(width, _NEVER)  # when the link is free again
        self.arrival = np.full(width + 1, _NEVER)
        self.credit = np.full((self.capacity, width + 1), _NEVER)
        self._begin, self._first_done, self._end, self._end_full_wait = np.zeros((4, width))
        self._phases = [_Phase(self, self._work, i, self._skew) for i in range(self._skew)]

    def advance(self, num_steps: int) -> None:
        """Take so many steps, or as many as are left."""
        stop = min(self.step + num_steps, self.num_steps)
        while self.step < stop:
            num_rows = min(1 + _DRAWN_AT_ONCE // len(self.free), stop - self.step)
            for before, hold in zip(*self._work.rows(self.step, num_rows), strict=True):
                for phase in self._phases:
                    phase.compute(self.step % self.capacity, before, hold)
                self._note_ends()
                self.step += 1

    def _note_ends(self) -> None:
        """Keep what belongs to the first and the last message of a column."""
        if self.step < self._num_filling:
            first = slice(self.step * self._skew, (self.step + 1) * self._skew)
            self._begin[first] = self.start[first]
            self._first_done[first] = self.free[first]
        if (lag := self.step - self._num_batches + 1) >= 0:
            last = slice(lag * self._skew, (lag + 1) * self._skew)
            self._end[last] = self.free[last]
            self._end_full_wait[last] = self.full_wait[last]

    def skip_periods(self) -> None:
        """Where ``capacity`` steps change all times alike, so will the next: leave them out.

        ``capacity`` is always a period: the cycles of the table's graph lead from a message to the
        next one of its stage or, by a credit, to the one ``capacity`` later.
        """
        if self.step < self._num_filling + self.capacity:
            return
        times, waits = self._times(), self.full_wait.copy()
        self.advance(self.capacity)
        increments = (self._times() - times)[times > _NEVER]
        num_periods = (self._num_batches - 1 - self.step) // self.capacity
        if num_periods < 1 or np.ptp(increments) > _SAME * increments.max():
            return
        for array in (self.free, self.leave, self.arrival, self.credit):
            array += num_periods * increments.max()
        self.full_wait += num_periods * (self.full_wait - waits)
        self.step += num_periods * self.capacity

    def _times(self) -> _Row:
        return np.concatenate([self.free, self.leave, self.arrival, self.credit.ravel()])

    def result(self) -> Simulation:
        """What was found, when all steps are done."""
        span, busy, full_wait = self._end - self._begin, self._work.occupied, self._end_full_wait
        share = np.divide(busy, span, out=np.zeros_like(span), where=span > 0)
        seconds = float(self._end[1:].max())
        gaps = self._num_batches - 1
        return Simulation(
            seconds,
            float(self._end[-1] - self._first_done[-1]) / gaps if gaps else seconds,
            tuple(np.minimum(share, 1.0)[1:].tolist()),
            tuple(np.maximum(span - busy - full_wait, 0.0)[1:].tolist()),
            tuple(full_wait[1:].tolist()),
        )


class _Phase:
    """The columns of a front that are computed at once, and what they read and write."""

    def __init__(self, front: _Front, work: _Work, index: int, skew: int) -> None:
        self._columns = slice(index, None, skew)
        self._start, self._ready = front.start[self._columns], front.ready[self._columns]
        self._send, self._free = front.send[self._columns], front.free[self._columns]
        self._full_wait = front.full_wait[self._columns]
        self._arrival = front.arrival[:-1][self._columns]
        self._next_arrival = front.arrival[1:][self._columns]
        # Of the message ``capacity`` ago: that step, or the one after it for the next column.
        shift = 0 if index < skew - 1 else 1
        credits = np.roll(np.arange(front.capacity), -shift)
        self._credit = [front.credit[slot, 1:][self._columns] for slot in credits]
        self._given_back = [credit[:-1][self._columns] for credit in front.credit]
        self._leave, self._transfer = front.leave[self._columns], work.transfer[self._columns]
        self._latency = work.latency[self._columns]
        self._credit_latency = np.concatenate([[0.0], work.latency[:-1]])[self._columns]

    def compute(self, slot: int, before: _Row, hold: _Row) -> None:
        """One message of every column."""
        np.maximum(self._arrival, self._free, out=self._start)
        np.add(self._start, before[self._columns], out=self._ready)
        np.maximum(self._ready, self._credit[slot], out=self._send)
        np.add(self._send, hold[self._columns], out=self._free)
        np.maximum(self._send, self._leave, out=self._leave)
        np.add(self._leave, self._transfer, out=self._leave)
        np.add(self._leave, self._latency, out=self._next_arrival)
        np.add(self._free, self._credit_latency, out=self._given_back[slot])
        np.subtract(self._send, self._ready, out=self._ready)
        np.add(self._full_wait, self._ready, out=self._full_wait)

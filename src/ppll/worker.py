"""The loop of one rank: where learning meets transport.

::

    for message in inbox:
        for block in stage:
            message = block.forward(message)
            if block is the stage's last: outbox.send(message)      # early, before it learns
            if message trains: block.learn()

Marks run through the same loop. The loop is a generator that yields the channel end it waits for
wherever it would block: a real rank drains it with a blocking wait (``drain``), a test interleaves
the workers of all stages in one process in any order it likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from ppll.block import Block
from ppll.channels.base import Inbox, SendEnd
from ppll.message import Kind, Message
from ppll.metrics import MetricsFile, Tally
from ppll.saving import Saver
from ppll.status import Activity, Monitor

__all__ = ["Waiting", "Worker", "drain"]


class Waiting(Protocol):
    """What a worker waits for: an end of a channel, or the data loader."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until there is something to do or the time is over."""
        ...


class Worker:
    """Runs the blocks of one stage over a stream of messages.

    Args:
        blocks: The stage's blocks, in order.
        inbox: Where messages come from.
        outbox: Where they go; none for the last stage.
        saver: Writes checkpoints; none where nothing is saved.
        metrics: Takes the blocks' numbers; none where nobody asks for them.
        monitor: Is told what the worker does.
        log_every_steps: Training metrics are written after so many batches.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        inbox: Inbox,
        outbox: SendEnd | None,
        *,
        saver: Saver | None = None,
        metrics: MetricsFile | None = None,
        monitor: Monitor | None = None,
        log_every_steps: int = 50,
    ) -> None:
        self.blocks = tuple(blocks)
        self.monitor = monitor or Monitor()
        self.exits: dict[str, dict[int, Tally]] = {}
        """Last evaluation of every split, by split and block index."""
        self.last_message: Message | None = None
        self.evaluation_s = 0.0
        """Seconds from the first batch of an evaluation to its end, summed over evaluations."""
        self._evaluates_since: float | None = None
        self._inbox = inbox
        self._outbox = outbox
        self._saver = saver
        self._metrics = metrics
        self._log_every_steps = log_every_steps

    def run(self) -> Iterator[Waiting]:
        """Work until the stop has passed; yield what is waited for, instead of waiting.

        Raises:
            ChannelClosed: A neighbour is gone.
        """
        while self.last_message is None or self.last_message.kind is not Kind.STOP:
            self.monitor.enter(Activity.RECEIVE)
            while not self._inbox.ready():
                yield self._inbox
            message = self._inbox.recv()
            if self.last_message is None:
                self.monitor.start_clock()
            self.last_message = message
            yield from self._handle(message)
            if self._outbox is not None:
                # What is being copied may be a view of the slot that is given back.
                self._outbox.flush()
            self._inbox.release(message)
        self.monitor.enter(Activity.FINISH)

    def _handle(self, message: Message) -> Iterator[Waiting]:
        if self._saver is not None:
            self._saver.hear(message.saved_step)
        if message.kind is Kind.EVALUATE and self._evaluates_since is None:
            self._evaluates_since = time.monotonic()
        if message.kind in (Kind.TRAIN, Kind.EVALUATE):
            yield from self._pass_batch(message)
        else:
            self._obey(message)
            yield from self._send(message)

    def _pass_batch(self, message: Message) -> Iterator[Waiting]:
        trains = message.kind is Kind.TRAIN
        self.monitor.note(epoch=message.epoch, inbox_fill=self._inbox.fill)
        if trains:
            self.exits.clear()  # They were those of other weights.
        for block in self.blocks:
            self.monitor.enter(Activity.FORWARD, block=block.index, step=message.step)
            message = block.forward(message)
            if block is self.blocks[-1]:
                yield from self._send(message)
            self.monitor.enter(Activity.LEARN if trains else Activity.EVALUATE, block=block.index)
            block.learn() if trains else block.evaluate()
        if trains:
            self.monitor.num_samples += message.targets.shape[0]
            if message.ends_batch and message.step % self._log_every_steps == 0:
                self._write_training(message)

    def _send(self, message: Message) -> Iterator[Waiting]:
        if self._outbox is None:
            return
        if not self._outbox.ready():
            self.monitor.enter(Activity.SEND_WAIT)
            while not self._outbox.ready():
                yield self._outbox
        self.monitor.enter(Activity.SEND)
        if self._saver is not None:
            message = message.with_saved_step(self._saver.saved_step)
        self._outbox.send(message)
        self.monitor.note(outbox_fill=self._outbox.fill)

    def _obey(self, message: Message) -> None:
        """Do what a mark asks for, before it is sent on."""
        match message.kind:
            case Kind.CHECKPOINT if self._saver is not None:
                # What was counted up to here must not be lost with a start that ends later.
                self._write_training(message)
                self.monitor.enter(Activity.SAVE, step=message.step)
                self._saver.save(message.step, self.blocks)
            case Kind.EVALUATION_END:
                self._write_evaluation(message)
            case Kind.EPOCH_END:
                self._write_training(message)
            case Kind.STOP if self._saver is not None:
                # The last checkpoint is whole only when every stage has it on disk.
                self.monitor.enter(Activity.SAVE)
                self._saver.finish()

    def _write_training(self, message: Message) -> None:
        for block in self.blocks:
            tally = block.counts.take()
            if tally.samples or tally.skipped:
                self.monitor.note(loss=tally.loss, accuracy=tally.accuracy)
                self._write("train", message, block.index, tally)
        if self._metrics is not None:
            self._metrics.flush()

    def _write_evaluation(self, message: Message) -> None:
        tallies = {block.index: block.counts.take() for block in self.blocks}
        self.exits[message.split] = tallies
        if self._evaluates_since is not None:
            self.evaluation_s += time.monotonic() - self._evaluates_since
            self._evaluates_since = None
        for index, tally in tallies.items():
            self._write(message.split, message, index, tally)
        if self._metrics is not None:
            self._metrics.flush()

    def _write(self, kind: str, message: Message, block_index: int, tally: Tally) -> None:
        if self._metrics is not None:
            self._metrics.write(
                kind=kind,
                step=message.step,
                epoch=message.epoch,
                block=block_index,
                samples=tally.samples,
                loss=tally.loss,
                accuracy=tally.accuracy,
                **({"skipped": tally.skipped} if tally.skipped else {}),
            )


def drain(waits: Iterator[Waiting]) -> None:
    """Run a worker to its end in a process of its own, blocking wherever it waits."""
    for waiting in waits:
        waiting.wait()

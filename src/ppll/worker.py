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

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import Tensor

from ppll.batch_ends import BatchEnds
from ppll.blocks.block import Block
from ppll.blocks.slow import SlowParameters
from ppll.blocks.streams import Streams
from ppll.channels.base import Inbox
from ppll.checkpoints.manifest import ValidationRecord
from ppll.checkpoints.saving import Saver
from ppll.devices import peak_memory_bytes
from ppll.ends import PARAMETERS, Ends, SlowInbox, Waiting
from ppll.errors import ProtocolError
from ppll.message import Kind, Message, canonical
from ppll.metrics import MetricsFile, Tally
from ppll.status import Activity, Monitor, resident_peak_bytes

__all__ = ["Worker", "drain"]


class Worker:
    """Runs the blocks of one stage over a stream of messages.

    Args:
        blocks: The stage's blocks, in order.
        ends: Where messages come from and go to.
        saver: Writes checkpoints; none where nothing is saved.
        metrics: Takes the blocks' numbers; none where nobody asks for them.
        monitor: Is told what the worker does.
        log_every_steps: Training metrics are written after so many batches.
        streams: Where the blocks compute; one after the other without.
        batch_ends: Takes down when the last block has updated after each batch.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        ends: Ends,
        *,
        saver: Saver | None = None,
        metrics: MetricsFile | None = None,
        monitor: Monitor | None = None,
        log_every_steps: int = 50,
        streams: Streams | None = None,
        batch_ends: BatchEnds | None = None,
    ) -> None:
        self.blocks = tuple(blocks)
        self._device = self.blocks[0].device
        self._reads_last = self.blocks[0].method.slow_from == "last"
        self.monitor = monitor or Monitor()
        self.exits: dict[str, dict[int, Tally]] = {}
        """Last evaluation of every split, by split and block index."""
        self.last_message: Message | None = None
        self.evaluation_s = 0.0
        """Seconds from the beginning of an evaluation to its end, summed over evaluations."""
        self._evaluation = ExitStack()
        """What blocks compute with in an evaluation; empty otherwise."""
        self._ends = ends
        self._inbox = ends.inbox
        self._makes_batches = ends.makes_batches
        self._outbox = ends.outbox
        self._saver = saver
        self._metrics = metrics
        self._log_every_steps = log_every_steps
        self._streams = streams or Streams()
        self._batch_ends = batch_ends
        self._num_learned = 0

    def run(self) -> Iterator[Waiting]:
        """Work until the stop has passed; yield what is waited for, instead of waiting.

        Raises:
            ChannelClosed: A neighbour is gone.
        """
        while self.last_message is None or self.last_message.kind is not Kind.STOP:
            self.monitor.enter(Activity.MAKE_BATCH if self._makes_batches else Activity.RECEIVE)
            while not self._inbox.ready():
                yield self._inbox
            message = self._inbox.recv()
            if self._makes_batches and message.kind is Kind.EVALUATE:
                self.monitor.note(activity=Activity.EVALUATE)  # what is made is known only now
            if self.last_message is None:
                self.monitor.start_clock()
            self.last_message = message
            yield from self._handle(message)
            self._inbox.release(message)
        self.monitor.enter(Activity.FINISH)

    def _handle(self, message: Message) -> Iterator[Waiting]:
        if self._saver is not None:
            self._saver.hear(message.saved_step)
        if message.kind in (Kind.TRAIN, Kind.EVALUATE):
            yield from self._pass_batch(message)
        else:
            self._streams.join()
            yield from self._obey(message)
            yield from self._send(message)

    def _pass_batch(self, message: Message) -> Iterator[Waiting]:
        trains = message.kind is Kind.TRAIN
        tested = 0 if trains else self.monitor.status.tested + message.targets.shape[0]
        self.monitor.note(epoch=message.epoch, inbox_fill=self._inbox.fill, tested=tested)
        if trains:
            self.exits.clear()  # They were those of other weights.
        late: Mapping[str, Tensor] = {}
        message = message.on(self._device)
        overlaps = trains and self._streams.may_overlap(self.blocks[0], message)
        if not overlaps:
            self._streams.join()
        for position, block in enumerate(self.blocks):
            with self._streams.turn(position, overlaps=overlaps):
                forward = Activity.FORWARD if trains else Activity.EVALUATION_FORWARD
                self.monitor.enter(forward, block=block.index, step=message.step)
                message = block.forward(message)
                self._streams.forwarded(position)
                if block is self.blocks[-1]:
                    yield from self._send(message)
                if trains:
                    late = yield from self._learn(block, message, late)
                else:
                    self.monitor.enter(Activity.EVALUATE, block=block.index)
                    block.evaluate()
                if block is self.blocks[-1] and self._outbox is not None:
                    # What is being copied may be a view of the slot that is given back. Where
                    # blocks overlap it is not, and only this one's stream waits for the copy.
                    self._outbox.flush()
        if trains:
            self._num_learned += 1
            self.monitor.num_samples += message.targets.shape[0]
            if message.ends_batch and message.step % self._log_every_steps == 0:
                self._streams.join()
                self._write_training(message)

    def _learn(
        self, block: Block, message: Message, late: Mapping[str, Tensor]
    ) -> Generator[Waiting, None, dict[str, Tensor]]:
        """One block's learning step, with what comes late and slowly; its own late part."""
        received = None
        if block is self.blocks[0] and self._ends.late_inbox is not None:
            received = yield from self._receive_late(self._ends.late_inbox, message)
            late = received.on(self._device).tensors
        slow = None
        if block.slow is not None:
            yield from self._wait_for_slow(block, block.slow, lambda s: s.has_next)
            slow = block.slow.take()
        self.monitor.enter(Activity.LEARN, block=block.index)
        own = block.learn(late, slow)
        if self._batch_ends is not None and block is self.blocks[-1] and message.ends_batch:
            self._batch_ends.note()
        yield from self._publish(block, message)
        if block is self.blocks[-1] and self._ends.late_outbox is not None:
            part = self._side_message(message, own)
            yield from self._wait(self._ends.late_outbox, Activity.SEND_WAIT)
            self._ends.late_outbox.send(part)
            self._ends.late_outbox.flush()
        if received is not None and self._ends.late_inbox is not None:
            self._ends.late_inbox.release(received)
        return own

    def _wait_for_slow(
        self, block: Block, slow: SlowParameters, is_over: Callable[[SlowParameters], bool]
    ) -> Iterator[Waiting]:
        fed = self.blocks if self._reads_last else self.blocks[-1:]
        readers = [b.slow for b in fed if b.slow is not None]
        inbox = self._ends.slow_inbox if block in fed else None
        yield from self._wait(SlowInbox(readers, inbox, lambda: is_over(slow)), Activity.SEND_WAIT)

    def _receive_late(self, inbox: Inbox, message: Message) -> Generator[Waiting, None, Message]:
        yield from self._wait(inbox, Activity.RECEIVE)
        received = inbox.recv()
        if (received.step, received.part) != (message.step, message.part):
            raise ProtocolError(
                f"the second part of step {received.step}, message {received.part}, came with the "
                f"first of step {message.step}, message {message.part}."
            )
        return received

    def _publish(self, block: Block, message: Message) -> Iterator[Waiting]:
        """Hand a layer's parameters to the blocks before that read them."""
        position = self.blocks.index(block)
        is_read = block.site.is_last if self._reads_last else True
        first = 0 if self._reads_last else max(0, position - 1)
        readers = [b.slow for b in self.blocks[first:position] if b.slow is not None]
        outboxes = self._ends.slow_outboxes if self._reads_last or not position else ()
        if not is_read or not (readers or outboxes):
            return
        values = block.published_parameters()
        for reader in readers:
            reader.put(values)
        for outbox in outboxes:
            yield from self._wait(outbox, Activity.SEND_WAIT)
            outbox.send(self._side_message(message, {PARAMETERS: values}))
            outbox.flush()

    def _side_message(self, message: Message, tensors: Mapping[str, Tensor]) -> Message:
        """What goes beside a training message, numbered for itself."""
        canonical_tensors = {name: canonical(tensor.cpu()) for name, tensor in tensors.items()}
        return replace(message, sequence=self._num_learned, tensors=canonical_tensors)

    def _wait(self, end: Waiting, activity: Activity) -> Iterator[Waiting]:
        if not end.ready():
            self.monitor.enter(activity)
            while not end.ready():
                yield end

    def _send(self, message: Message) -> Iterator[Waiting]:
        if self._outbox is None:
            return
        yield from self._wait(self._outbox, Activity.SEND_WAIT)
        evaluates = message.kind is Kind.EVALUATE
        self.monitor.enter(Activity.EVALUATE if evaluates else Activity.SEND)
        if self._saver is not None:
            message = message.with_saved_step(self._saver.saved_step)
        self._outbox.send(message)
        self.monitor.note(outbox_fill=self._outbox.fill)

    def _obey(self, message: Message) -> Iterator[Waiting]:
        """Do what a mark asks for, before it is sent on."""
        match message.kind:
            case Kind.CHECKPOINT:
                # What was counted up to here must not be lost with a start that ends later.
                self.monitor.enter(Activity.COUNT)
                self._write_training(message)
                self.monitor.note_peak(peak_memory_bytes(self._device))
                self.monitor.enter(Activity.SAVE, step=message.step)
                if self._saver is not None:
                    self._saver.save(message.step, self.blocks)
                else:
                    self._help_to_save()
            case Kind.EVALUATION_BEGIN:
                self.monitor.enter(Activity.EVALUATE)
                self._begin_evaluation()
            case Kind.EVALUATION_END:
                self.monitor.enter(Activity.EVALUATE)
                self._evaluation.close()
                self._write_evaluation(message)
            case Kind.EPOCH_END:
                self.monitor.enter(Activity.COUNT)
                self._write_training(message)
            case Kind.STOP:
                # Whoever sends parameters must find somebody there to the end, and the last
                # checkpoint is whole only with those that are on their way.
                for block in self.blocks:
                    if block.slow is not None:
                        yield from self._wait_for_slow(block, block.slow, lambda s: s.is_whole)
                if self._saver is not None:
                    self.monitor.enter(Activity.SAVE)
                    self._saver.finish()

    def _help_to_save(self) -> None:
        """Hand over what the replica that saves does not have."""
        for block in self.blocks:
            for _ in itertools.chain(block.named_tensors(), block.optimizer_tensors()):
                pass

    def _write_training(self, message: Message) -> None:
        for block in self.blocks:
            tally = block.take_training()
            if tally.samples or tally.skipped:
                self.monitor.note(loss=tally.loss, accuracy=tally.accuracy)
                self.monitor.note(memory_bytes=resident_peak_bytes())
                self._write("train", message, block.index, tally)
        if self._metrics is not None:
            self._metrics.flush()

    def _begin_evaluation(self) -> None:
        """In every replica at once, also in those that no batch of an evaluation comes to."""
        self.evaluation_s -= time.monotonic()
        for block in self.blocks:
            self._evaluation.enter_context(block.exchange.evaluated(block.averages))

    def _write_evaluation(self, message: Message) -> None:
        tallies = {block.index: block.counts.take() for block in self.blocks}
        self.exits[message.split] = tallies
        self.evaluation_s += time.monotonic()
        if self._saver is not None and message.split == "validation":
            final = tallies[self.blocks[-1].index]
            record = ValidationRecord.of(message.step, final.accuracy, final.loss)
            self._saver.note_validation(record)
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

"""A block: layers, auxiliary network, local loss, optimizer and schedule as one thing.

A block owns everything that its learning needs, so it can be placed, saved and moved as a whole,
and does not know where messages come from. Only here what leaves is detached: no gradient crosses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, optim
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppll.blocks.alone import Alone
from ppll.blocks.averages import Averages
from ppll.blocks.compiling import compiled
from ppll.blocks.in_place import in_place_error
from ppll.blocks.lean import FeaturesType, opened, packed, renamed
from ppll.blocks.modules import BlockModules
from ppll.blocks.nonfinite import LossCheck, NonFiniteLoss, OnNonFinite
from ppll.blocks.optimization import Schedule
from ppll.blocks.passage import Passage
from ppll.blocks.seeding import EVALUATE, FORWARD, LEARN, Seeds
from ppll.blocks.slow import SlowParameters, flat_parameters
from ppll.blocks.updates import Updates
from ppll.losses.classification import on_both_classes
from ppll.message import FEATURES, MIX, OTHER_TARGETS, Kind, Message, canonical
from ppll.methods.base import (
    PREVIOUS,
    BlockSite,
    Lesson,
    Method,
    TaskLoss,
    late_part_of,
    let_take_slow,
    local_loss_of,
)
from ppll.metrics import Counts, Tally
from ppll.numerics import in_turn

__all__ = ["Block", "NonFiniteLoss", "OnNonFinite"]


class Block:
    """Consecutive layers that learn from one local loss.

    Args:
        site: Where the block stands in its network.
        modules: Its layers and auxiliary network.
        method: Gives the local loss.
        task_loss: The recipe's loss on logits (N, classes) and targets (N), or (N, classes) where
            samples are mixed; of tokens on (N, T, classes) and (N, T).
        optimizer: Over the trainable parameters of layers and auxiliary network.
        schedule: Learning rate by step.
        seed: The recipe's seed.
        device: Where the parameters are.
        autocast: Type of the forward's matrix products; none for float32. With float16 the loss is
            scaled, and a batch whose gradients overflow is left out.
        clip_norm: Largest norm of the block's gradient.
        on_nonfinite: What to do about a loss that is not finite. With ``"skip"`` a gradient that
            is not finite is skipped, too, and buffers and averages stay as before the batch.
        average_decay: Of moving averages of the parameters, for evaluations; 0 for none.
        compiles: Whether forward and local loss of training are compiled.
        features_type: In what features cross every cut; as they are computed without.
    """

    def __init__(
        self,
        site: BlockSite,
        modules: BlockModules,
        method: Method,
        task_loss: TaskLoss,
        optimizer: optim.Optimizer,
        schedule: Schedule,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        clip_norm: float | None = None,
        on_nonfinite: OnNonFinite = "stop",
        average_decay: float = 0.0,
        compiles: bool = False,
        features_type: FeaturesType | None = None,
    ) -> None:
        self.site = site
        self.modules = modules
        self.method = method
        self.device = device or torch.device("cpu")
        self.counts = Counts(self.device)
        self.slow: SlowParameters | None = None
        """What it reads of a later block, where the method asks for that."""
        self.exchange = Alone()
        """What it has in common with its replicas."""
        self.updates = Updates(
            modules,
            optimizer,
            schedule,
            clip_norm=clip_norm,
            leaves_out=on_nonfinite == "skip",
            average_decay=average_decay,
            scales_loss=autocast is torch.float16,
        )
        self._compute = compiled(_compute) if compiles else _compute
        self._local_loss = compiled(local_loss_of) if compiles else local_loss_of
        self._task_loss = task_loss
        self._check = LossCheck(site.block_index, on_nonfinite, self.device)
        self._autocast_dtype = autocast
        self._features_type = features_type
        self._reads = modules.reads
        self._ending = frozenset(modules.reads) - frozenset(modules.makes)
        self._seeds = Seeds(seed, site.block_index)
        self._training: bool | None = None
        self._passage: Passage | None = None
        self._skips_batch = False

    @property
    def index(self) -> int:
        """Position of the block in its network, from 0."""
        return self.site.block_index

    @property
    def averages(self) -> Averages | None:
        """Of its trainable parameters, where the recipe asks for them."""
        return self.updates.averages

    def join(self, exchange: Alone, replica: int) -> None:
        """Learn with other replicas, each with random numbers of its own; values come later."""
        self.exchange = exchange
        self.updates.join(exchange)
        self._seeds.join(replica)

    @in_turn
    def forward(self, message: Message) -> Message:
        """Turn the message's features into the next block's message.

        The features that leave have no gradient history. The block keeps the graph for ``learn``
        and holds on to ``message`` until then.
        """
        trains = message.kind is Kind.TRAIN
        self._set_mode(training=trains)
        if trains and message.part == 0:
            self._skips_batch = False
            self.updates.begin(message.step)
            if self._check.may_leave_out:
                self.counts.begin_batch()
        self._seed(FORWARD if trains else EVALUATE, message)
        self._passage, fields = self._forward(message)
        return message.with_tensors(**fields).without(self._ending)

    def _forward(self, message: Message) -> tuple[Passage, dict[str, Tensor]]:
        """What a forward does on the device: the passage, and the fields that leave."""
        trains = message.kind is Kind.TRAIN
        came = {name: message.tensors[name] for name in self._reads} | dict(message.tensors)
        before = [tensor._version for tensor in came.values()]
        received = opened(message.tensors, self._features_type)
        inputs = received[FEATURES]
        if trains and self.method.needs_input_gradient and inputs.is_floating_point():
            inputs = inputs.view_as(inputs).requires_grad_()
        with torch.set_grad_enabled(trains), self._autocast(), self._attention():
            # Evaluation is not compiled: a network that is loaded must compute alike.
            compute = self._compute if trains else _compute
            features, beside = compute(self.modules, inputs, received)
        made = [features, *beside.values()]
        versions = (*before, *[tensor._version for tensor in made])
        passage = Passage(message, inputs, features, received, (*came.values(), *made), versions)
        self._refuse_in_place(passage)
        carried = renamed(message.tensors, PREVIOUS) if self.method.carries_input else {}
        return passage, {**self._leaving_fields(features, beside), **carried}

    @in_turn
    def learn(
        self, late: Mapping[str, Tensor] | None = None, slow: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Learn from the message of the last ``forward``: local loss, backward, and, if the batch
        ends with the message, clip and update.

        Args:
            late: The second part of the message, where the method has one.
            slow: Parameters of a later block's layer, where the method asks for them.

        Returns:
            The second part of the message for the next block, without gradient history.

        Raises:
            NonFiniteLoss: The loss (in float16 also its gradient, however it is scaled) is not
                finite, and the run is to stop then; nothing was updated.
            ModelError: The block's input or output, another field or ``slow`` was changed in place.
        """
        passage = self._take_passage()
        message = passage.message
        # Once a batch, as it is updated once: what follows a layer counts updates.
        if slow is not None and message.part == 0 and self.modules.auxiliary is not None:
            let_take_slow(self.method, self.modules.auxiliary, slow)
        self._seed(LEARN, message)
        self.counts.count(message.targets)
        late_part = self._learn(passage, late or {})
        if message.ends_batch:
            self.updates.settle(message.step)
        return late_part

    def _learn(self, passage: Passage, late: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a learning step does on the device; the second part of the message."""
        message = passage.message
        lesson = Lesson(passage.inputs, passage.features, message.targets, passage.fields, late)
        with self._autocast(), self._attention():
            task_loss = self._task_loss_on(message)
            loss = self._local_loss(self.method, self.modules.auxiliary, lesson, task_loss)
        self._refuse_in_place(passage)
        skips = self._skips_batch or not self._check.may_learn_from(loss.value, message.step)
        self._skips_batch = self.exchange.agree(leaves_out=skips)
        if not self._skips_batch:
            if message.ends_batch:
                self.exchange.begin()
            with self._attention():  # Layers that are computed again take the same kernel.
                self.updates.backward(_share_of(loss.value, message))
            self._refuse_in_place(passage)
            self.counts.add(loss.value, loss.logits, message.targets)
        if message.ends_batch:
            if self.exchange.gather(leaves_out=self._skips_batch):
                self.updates.leave_out()
                self.counts.leave_out_batch()
            else:
                self._check.check_update(self.updates.finish())
        late_part = late_part_of(self.method, lesson, loss)
        return {name: _leaving(tensor) for name, tensor in late_part.items()}

    @in_turn
    def evaluate(self) -> None:
        """Count what the block's exit gets right on the message of the last ``forward``."""
        passage = self._take_passage()
        targets = passage.message.targets
        with torch.no_grad(), self._autocast(), self._attention():
            logits = self.method.exit(self.modules.auxiliary, passage.features)
            loss = None if logits is None else self._task_loss(logits, targets)
        self._refuse_in_place(passage)
        self.counts.add(loss, logits, targets)
        self.counts.count(targets)

    def take_training(self) -> Tally:
        """What was counted in training since the last call.

        Raises:
            NonFiniteLoss: On a GPU: a loss among it is not finite, and the run is to stop then.
        """
        tally = self.counts.take(self.exchange.total)
        self._check.check_tally(tally)
        return tally

    def published_parameters(self) -> Tensor:
        """Values of all parameters of the layer that others read, one after the other."""
        layer = self.modules.layers[-1 if self.method.slow_from == "last" else 0]
        return flat_parameters(layer.module, self.device)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of layers and auxiliary network."""
        return self.exchange.whole(self.modules.named_tensors())

    def optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The optimizer's state and the averages, by parameter, and the loss scale."""
        return self.exchange.whole(self.updates.named_state())

    def named_averages(self) -> Iterator[tuple[str, Tensor]]:
        """The averages under the names of the parameters; nothing where there are none."""
        return self.exchange.whole(self.averages.named() if self.averages else ())

    def load(self, tensors: dict[str, Tensor], optimizer_tensors: dict[str, Tensor]) -> None:
        """Take over saved parameters, buffers, optimizer state and averages.

        Raises:
            ModelError: A tensor is missing or has another shape.
        """
        self.exchange.load(self.modules, tensors)
        self.updates.load(self.exchange.own(optimizer_tensors.items()))

    def _leaving_fields(self, features: Tensor, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What travels of the features and beside them; the network's output goes nowhere."""
        dtype = None if self.site.is_last else self._features_type
        with torch.no_grad():
            fields = packed(features, dtype)
        return {name: _leaving(tensor) for name, tensor in {**fields, **beside}.items()}

    def _set_mode(self, *, training: bool) -> None:
        if training is not self._training:
            for _, module in self.modules.named():
                module.train(training)
            self._training = training

    def _seed(self, phase: int, message: Message) -> None:
        """Make the default generator a function of seed, block and message."""
        seed = self._seeds.of(phase, message)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    def _autocast(self) -> AbstractContextManager[None]:
        if self._autocast_dtype is not None:
            # Torch keeps cast weights until the outermost context ends, which may be around us.
            torch.clear_autocast_cache()
        return torch.autocast(
            self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None
        )

    def _attention(self) -> AbstractContextManager[None]:
        """Only the plain kernel can be differentiated twice, as a loss on a gradient asks for."""
        return sdpa_kernel(SDPBackend.MATH) if self.method.needs_input_gradient else nullcontext()

    def _take_passage(self) -> Passage:
        passage, self._passage = self._passage, None
        if passage is None:
            raise AssertionError("a block learns or evaluates once after each forward")
        return passage

    def _task_loss_on(self, message: Message) -> TaskLoss:
        """The task's loss, on both classes of samples that are mixed of two."""
        if MIX not in message.tensors:
            return self._task_loss
        other, mix = message.tensors[OTHER_TARGETS], message.tensors[MIX]
        return partial(on_both_classes, self._task_loss, other, mix)

    def _refuse_in_place(self, passage: Passage) -> None:
        """A changed input or output would be seen by a neighbour in the same process only."""
        for position in passage.changed():
            leaves = partial(self.method.exit, self.modules.auxiliary)
            with self._autocast():
                raise in_place_error(self.index, self.modules, leaves, position, passage.fields)


def _compute(
    modules: BlockModules, inputs: Tensor, fields: Mapping[str, Tensor]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    return modules(inputs, fields)


def _leaving(tensor: Tensor) -> Tensor:
    """A tensor as it leaves its block: without gradient history."""
    return canonical(tensor.detach())


def _share_of(loss: Tensor, message: Message) -> Tensor:
    """What a message's mean loss adds to that of its batch, of all replicas."""
    return loss if message.share == 1 else loss * message.share

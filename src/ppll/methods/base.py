"""What every method of local learning gives a block: an auxiliary network and a local loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.message import PREVIOUS
from ppll.site import BlockSite

__all__ = ["PREVIOUS", "BlockSite", "Lesson", "LocalLoss", "Method", "Paper", "TaskLoss"]
__all__ += ["late_part_of", "late_shapes_of", "let_take_slow", "local_loss_of"]

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, classes) and targets (N) to a scalar, or both values (N, D); of tokens (N, T, classes)
and (N, T), and the mean is over all tokens. Where samples are mixed of two, the block adds
the other class and its share; a method gives it the targets of its lesson all the same."""


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    year: int
    source: str


@dataclass(frozen=True)
class Lesson:
    """One message, as a block learns from it.

    Attributes:
        inputs: The block's input (N, ...); it takes a gradient where the method asks for one.
        features: The block's output (N, ...), with its gradient history; of several tensors the
            main one, as everywhere here.
        targets: What is to be predicted: (N) class indices, or (N, T) of tokens, or values (N, D);
            of a sample that is mixed of two its own.
        fields: Whatever else travels in the message, by name.
        late: The second part of the message, by name; empty in the first block.
    """

    inputs: Tensor
    features: Tensor
    targets: Tensor
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    late: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalLoss:
    """What a block learns from.

    Attributes:
        value: Scalar; its gradient is the block's only one.
        logits: The exit's prediction (N, classes) or (N, T, classes); none where a block makes
            none.
    """

    value: Tensor
    logits: Tensor | None


class Method(ABC):
    """One way for a block to learn without hearing from the blocks behind it.

    A method holds options and no state: what is learned or counted lies in the auxiliary network,
    so that it is saved, moved and hashed with the block. What it says of itself may be set in the
    class or, where it depends on options, in ``__init__``.

    Attributes:
        paper: Where it comes from; methods of the shelf have one.
        end_to_end: Whether the whole network is one block, however the recipe would cut it.
        reads_cuts: Whether an end-to-end method puts something at the recipe's cuts: an auxiliary
            network or context. Others always do.
        has_auxiliary: Whether there is an auxiliary network behind every cut. Without,
            ``build_auxiliary`` is not called, and the loss gets none.
        fields: What the loader adds to a message beside features and targets: ``()``, or
            ``("image",)``, the input before normalisation, uint8 where it is an image.
        late_fields: Names of one's own of what ``late_part`` returns: a second part of the message,
            which exists when a block has learned.
        carries_input: Whether a block's own input travels on to the next one, as the field
            ``previous`` (N, ...).
        needs_input_gradient: Whether the loss asks for a gradient with respect to the block's
            input, ``lesson.inputs``.
        slow_from: Whose parameters reach a block over the side channel: ``"next"``, those of the
            next block's first layer; ``"last"``, those of the network's last layer; or None.
        needs_classes: Whether something but the task's loss reads targets, or predictions, as those
            of classes.
        compares_samples: Whether a part of the loss is of a message's samples beside each other,
            which one alone does not have: messages of one sample are refused.
        lag: Training messages by which these parameters are behind, 1 to 63 where there are some;
            part of the algorithm. An option of a recipe only where ``__init__`` takes it.
    """

    paper: ClassVar[Paper]
    end_to_end: ClassVar[bool] = False
    reads_cuts: bool = True
    has_auxiliary: bool = True
    fields: tuple[str, ...] = ()
    late_fields: ClassVar[tuple[str, ...]] = ()
    carries_input: bool = False
    needs_input_gradient: ClassVar[bool] = False
    needs_classes: bool = False
    compares_samples: bool = False
    slow_from: ClassVar[Literal["next", "last"] | None] = None
    lag: int = 0

    @abstractmethod
    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The auxiliary network of a block that is not the last, with its first values open.

        Raises:
            ModelError: The method cannot work on such features.
        """

    def build_context(self, site: BlockSite) -> nn.Module | None:
        """What adds to a block's input from a message's fields, and stays in the network.

        It takes the fields by name and returns (N, ...) of the input's shape. None for most methods
        and for the first block.
        """
        del site
        return None

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The loss that a block minimises.

        Args:
            auxiliary: What ``build_auxiliary`` made, or none in the last block, whose features
                are the network's logits.
            lesson: The message from the block's point of view.
            task_loss: The recipe's loss on logits and targets.
        """
        logits = self.exit(auxiliary, lesson.features)
        assert logits is not None  # methods without exits have a loss of their own
        return LocalLoss(task_loss(logits, lesson.targets), logits)

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor | None:
        """The block's own prediction (N, classes) from its features (N, ...), if it makes one."""
        if auxiliary is None:
            return features
        logits: Tensor = auxiliary(features)
        return logits

    def late_part(self, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
        """The ``late_fields`` for the next block, once the loss's gradients are there."""
        del lesson, loss
        return {}

    def late_shapes(self, site: BlockSite) -> dict[str, tuple[int, ...]]:
        """One sample's shape of each of the ``late_fields`` that a block sends."""
        del site
        return {}

    def take_slow(self, auxiliary: nn.Module, parameters: Tensor) -> None:
        """Let the auxiliary network see a later block's layer, before it learns from a batch.

        A batch in several messages (``train.accumulate``) is one batch.

        Args:
            auxiliary: Of the block that learns.
            parameters: Values of all parameters of that layer, one after the other, as they were
                ``lag`` training messages ago.
        """
        del auxiliary, parameters
        raise AssertionError("the method declares no slow_from")


def local_loss_of(
    method: Method, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
) -> LocalLoss:
    """A method's local loss; the method may be the user's own.

    Raises:
        ModelError: It is something else.
    """
    loss: object = method.local_loss(auxiliary, lesson, task_loss)
    if not isinstance(loss, LocalLoss):
        raise ModelError(
            f"local_loss of {_name(method)} returned {type(loss).__name__}: return "
            f"LocalLoss(value, logits)."
        )
    return loss


def late_part_of(method: Method, lesson: Lesson, loss: LocalLoss) -> dict[str, Tensor]:
    """A method's second part of a message; the method may be the user's own.

    Raises:
        ModelError: It is not what the method declares, so it would not cross a boundary.
    """
    part = method.late_part(lesson, loss)
    _check_names(method, "late_part", part)
    return part


def late_shapes_of(method: Method, site: BlockSite) -> dict[str, tuple[int, ...]]:
    """One sample's shapes in that part.

    Raises:
        ModelError: They are not those of what the method declares.
    """
    shapes = method.late_shapes(site)
    _check_names(method, "late_shapes", shapes)
    return shapes


def let_take_slow(method: Method, auxiliary: nn.Module, parameters: Tensor) -> None:
    """Let a method take over a later layer's parameters; the method may be the user's own.

    Raises:
        ModelError: It changed what it was given, which other blocks may be given, too.
    """
    version = parameters._version
    method.take_slow(auxiliary, parameters)
    if parameters._version != version:
        raise ModelError(
            f"take_slow of {_name(method)} changes the parameters in place. The same memory may be "
            f"given to another block, so the result would depend on the placement. Let it change "
            f"a copy: parameters.clone()."
        )


def _check_names(method: Method, function: str, found: Mapping[str, object]) -> None:
    if found.keys() != set(method.late_fields):
        raise ModelError(
            f"{function} of {_name(method)} returned {_listed(found)}, but its late_fields says "
            f"{_listed(method.late_fields)}: name the same in late_fields, late_part and "
            f"late_shapes."
        )


def _name(method: Method) -> str:
    return f"{type(method).__module__}:{type(method).__qualname__}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "(none)"

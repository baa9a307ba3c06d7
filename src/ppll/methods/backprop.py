"""End-to-end backpropagation: the control that every local method is held against."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.context import ContextChoice, build_context
from ppll.data.loader import IMAGE
from ppll.errors import RecipeError
from ppll.methods.base import BlockSite, Lesson, LocalLoss, Method, Paper, TaskLoss
from ppll.methods.options import check_not_negative

__all__ = ["Backprop"]


class Backprop(Method):
    """The whole network as one block that learns from its own head.

    By itself it needs no auxiliary network, and ``split`` does not matter to it. A control that is
    to have what local methods have beside the network gets it at the recipe's cuts: ContSup's
    context, or exits. Exits learn with the network (deeply-supervised nets, arXiv 1409.5185), and
    its prediction is then the mean of all exits' probabilities.

    Args:
        context: ContSup's encoders, part of the network; none where it is not given.
        exits: Name of the auxiliary network behind every segment but the last; none where it is
            not given.
        exit_options: Options of that network.
        exit_weight: What every exit's loss counts beside the final output's, at least 0.
    """

    paper = Paper("Learning representations by back-propagating errors", 1986, "Nature 323")
    end_to_end = True

    def __init__(
        self,
        *,
        context: ContextChoice | None = None,
        exits: str | None = None,
        exit_options: dict[str, Any] | None = None,
        exit_weight: float = 0.3,
    ) -> None:
        check_not_negative(exit_weight=exit_weight)
        if exits is None and exit_options:
            raise RecipeError(
                "method.exit_options are those of method.exits: name that auxiliary network, such "
                "as method.exits = 'linear', or leave them out."
            )
        self.context = context
        self.exits = exits
        self.exit_options = exit_options or {}
        self.exit_weight = exit_weight
        self.has_auxiliary = self.needs_classes = exits is not None
        self.reads_cuts = self.has_auxiliary or context is not None
        self.fields = (IMAGE,) if "E" in (context or "") else ()
        if exits is not None:
            auxiliaries.check(exits, self.exit_options, "method.exit_options")

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The exit behind a segment."""
        assert self.exits is not None  # has_auxiliary says so
        return auxiliaries.build(self.exits, self.exit_options, site)

    def build_context(self, site: BlockSite) -> nn.Module | None:
        """The encoders before a segment."""
        if self.context is None:
            return None
        return build_context(self.context, site, "leave method.context out")

    def local_loss(
        self, auxiliary: nn.Module | None, lesson: Lesson, task_loss: TaskLoss
    ) -> LocalLoss:
        """The final output's loss, and those of all exits (N, exits, classes) by their weight."""
        if self.exits is None:
            return super().local_loss(auxiliary, lesson, task_loss)
        *others, final = lesson.features.unbind(dim=1)
        value = task_loss(final, lesson.targets)
        for logits in others:
            value = value + self.exit_weight * task_loss(logits, lesson.targets)
        return LocalLoss(value, self.exit(auxiliary, lesson.features))

    def exit(self, auxiliary: nn.Module | None, features: Tensor) -> Tensor:
        """Logits (N, classes), or logarithms of the exits' mean probabilities."""
        del auxiliary
        if self.exits is None:
            return features
        num_exits = features.shape[1]
        return features.float().log_softmax(-1).logsumexp(1) - math.log(num_exits)

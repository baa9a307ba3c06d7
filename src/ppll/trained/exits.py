"""Early exits: what every exit is worth, all of them together, and leaving at the first sure one.

Every block that predicts is a classifier of its own, so a sample may leave the network at the first
exit that is confident, and the predictions of all exits may be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import Tensor

from ppll.data import Split
from ppll.data_facts import DataFacts
from ppll.errors import DataError, UsageError
from ppll.losses.classification import cross_entropy
from ppll.methods.base import TaskLoss

if TYPE_CHECKING:
    from ppll.trained.inference import BlockCompute, TrainedNetwork

__all__ = ["THRESHOLDS", "ExitReport", "Trade", "check_thresholds", "measure_exits"]

T = TypeVar("T")

THRESHOLDS: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Confidences that are tried where nobody names others."""


@dataclass(frozen=True)
class Trade:
    """Accuracy against depth at one threshold.

    Attributes:
        threshold: A sample leaves at the first exit whose largest softmax probability is so high;
            the last exit takes what is left.
        accuracy: Share of samples that are right where they leave, 0 to 1.
        mean_blocks: Blocks that a sample runs through, on average.
        exit_share: Share of samples that leave behind each block, the last block last; 0 where a
            block makes no prediction.
        compute_share: Multiply-adds of a sample on average, with the exits that were asked, as a
            share of those of the whole network without exits; above 1 where exits cost more than
            they save. None where the network has no matrix product or convolution.
    """

    threshold: float
    accuracy: float
    mean_blocks: float
    exit_share: tuple[float, ...]
    compute_share: float | None


@dataclass(frozen=True)
class ExitReport:
    """What the exits of a network are worth.

    Attributes:
        step: Training batches that the network has learned from.
        num_samples: Samples that were tested; of a language model, tokens.
        exit_accuracy: Share of them that each block's exit gets right, the final output last; none
            for a block that makes no prediction.
        exit_loss: Mean task loss in the same order; none, too, where it is not finite.
        average_accuracy: The same with the mean of the exits' softmax probabilities.
        average_loss: Its mean task loss; none where it is not finite.
        multiply_adds: What each block computes on a sample.
        trades: One a threshold.
    """

    step: int
    num_samples: int
    exit_accuracy: tuple[float | None, ...]
    exit_loss: tuple[float | None, ...]
    average_accuracy: float
    average_loss: float | None
    multiply_adds: tuple[BlockCompute, ...]
    trades: tuple[Trade, ...]

    def to_dict(self) -> dict[str, Any]:
        """A tree for JSON, whose ``rows`` are the thresholds."""
        tree = asdict(self)
        return {"rows": tree.pop("trades"), **tree}


@dataclass(frozen=True)
class _Answers:
    """What E exits say of N samples.

    Attributes:
        confidence: Largest softmax probabilities (E, N), float64.
        right: Whether each exit, and last their average, is right: (E + 1, N).
        losses: Summed task losses of the same: (E + 1), float64.
    """

    confidence: Tensor
    right: Tensor
    losses: Tensor

    @property
    def num_samples(self) -> int:
        """N."""
        return self.right.shape[1]


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Let thresholds pass that are above 0 and at most 1.

    Raises:
        UsageError: One is not, or there is one number instead of several.
    """
    if isinstance(thresholds, float | int):
        raise UsageError(f"thresholds must be a row of numbers, found {thresholds}: give a list.")
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise UsageError(
                f"a threshold is a probability above 0 and at most 1, found {threshold:g}."
            )


def measure_exits(
    network: TrainedNetwork,
    inputs: Tensor,
    targets: Tensor,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    batch_size: int = 128,
    task_loss: TaskLoss = cross_entropy,
) -> ExitReport:
    """Test every exit, their average, and leaving early at each of the thresholds.

    Probabilities are compared and averaged in float64.

    Args:
        network: What ``ppll.load`` gives, on the CPU.
        inputs: uint8 images (N, C, H, W) from 0 to 255, which are normalised as in training; or
            float32 (N, ...), or tokens (N, T), where the network was trained on them.
        targets: Class indices (N), int64; of a language model as ``Split`` has them.
        thresholds: Each above 0 and at most 1.
        batch_size: Samples that are computed at once, at least 1.
        task_loss: Mean loss of logits (N, classes) and targets (N).

    Raises:
        UsageError: A threshold or the batch size cannot be.
        DataError: Inputs and targets do not belong together or to the network.
    """
    check_thresholds(thresholds)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, found {batch_size}.")
    samples = Split(inputs, targets)
    _check_fit(network, samples)
    blocks, answers = _ask(network, samples, batch_size, task_loss)
    compute = tuple(network.multiply_adds(inputs[:1]))
    num = answers.num_samples
    *accuracies, average_accuracy = [count / num for count in answers.right.sum(1).tolist()]
    *losses, average_loss = [_finite(loss / num) for loss in answers.losses.tolist()]
    return ExitReport(
        step=network.step,
        num_samples=num,
        exit_accuracy=_by_block(blocks, accuracies, len(compute), None),
        exit_loss=_by_block(blocks, losses, len(compute), None),
        average_accuracy=average_accuracy,
        average_loss=average_loss,
        multiply_adds=compute,
        trades=tuple(_trade(threshold, blocks, answers, compute) for threshold in thresholds),
    )


def _check_fit(network: TrainedNetwork, samples: Split) -> None:
    facts = network.facts
    if facts.predicts_values or samples.predicts_values:
        raise DataError(
            "exits are compared by the classes that they predict, but here are values to predict: "
            "ppll.evaluate says how large the loss of every exit is."
        )
    if samples.input_shape != facts.input_shape:
        raise DataError(
            f"samples have the shape {samples.input_shape}, but the network was trained on "
            f"{facts.input_shape}: give it samples of the same kind."
        )
    _check_tokens(facts, samples)
    if facts.mean is not None and samples.inputs.dtype != torch.uint8:
        raise DataError(
            f"samples are {samples.inputs.dtype}, but the network was trained on images in bytes: "
            f"give uint8 from 0 to 255, which are normalised here as in training."
        )
    low, high = int(samples.targets.min()), int(samples.targets.max())
    if low < 0 or high >= facts.num_classes:
        raise DataError(
            f"targets go from {low} to {high}, but the network tells {facts.num_classes} classes "
            f"apart: give 0 to {facts.num_classes - 1}."
        )


def _check_tokens(facts: DataFacts, samples: Split) -> None:
    """Refuse rows of tokens, or targets of tokens, where the network knows others or none."""
    for what, were, are in (
        ("samples that are rows of tokens", facts.holds_tokens, samples.holds_tokens),
        ("a target for every token", facts.predicts_tokens, samples.predicts_tokens),
    ):
        if were != are:
            there, here = ("with", "without") if were else ("without", "with")
            raise DataError(
                f"the network was trained {there} {what}, but is measured {here}: give it inputs "
                f"and targets of the same kind."
            )
    if facts.num_tokens is not None:
        low, high = int(samples.inputs.min()), int(samples.inputs.max())
        if low < 0 or high >= facts.num_tokens:
            raise DataError(
                f"tokens go from {low} to {high}, but the network was trained on "
                f"{facts.num_tokens} of them: give 0 to {facts.num_tokens - 1}."
            )


@torch.no_grad()
def _ask(
    network: TrainedNetwork, samples: Split, batch_size: int, task_loss: TaskLoss
) -> tuple[list[int], _Answers]:
    """Which blocks predict, and what their exits say of all samples."""
    blocks: list[int] = []
    found = []
    for start in range(0, len(samples), batch_size):
        batch = slice(start, start + batch_size)
        exits = network.exits(samples.inputs[batch])
        blocks = [index for index, logits in enumerate(exits) if logits is not None]
        predicted = [logits for logits in exits if logits is not None]
        found.append(_answers(predicted, samples.targets[batch].long(), task_loss))
    return blocks, _Answers(
        torch.cat([part.confidence for part in found], dim=1),
        torch.cat([part.right for part in found], dim=1),
        torch.stack([part.losses for part in found]).sum(0),
    )


def _answers(exits: list[Tensor], targets: Tensor, task_loss: TaskLoss) -> _Answers:
    """What logits (N, classes), one an exit, say of N targets; tokens count as samples do."""
    probabilities = torch.stack([logits.double().softmax(-1) for logits in exits])
    average = probabilities.mean(0)
    # The softmax of logarithms of probabilities gives them back; a loss may hold float32 weights.
    everyone = [*exits, average.log().float()]
    losses = [task_loss(logits, targets).double() for logits in everyone]
    right = [(scores.argmax(-1) == targets).flatten() for scores in (*exits, average)]
    return _Answers(
        probabilities.amax(-1).flatten(1),
        torch.stack(right),
        torch.stack(losses) * targets.numel(),
    )


def _trade(
    threshold: float, blocks: list[int], answers: _Answers, compute: Sequence[BlockCompute]
) -> Trade:
    leaves = answers.confidence >= threshold
    leaves[-1] = True
    first = leaves.byte().argmax(0)  # (N); of equal values the first one's place
    num = answers.num_samples
    counts = torch.bincount(first, minlength=len(blocks)).tolist()
    exit_share = _by_block(blocks, [count / num for count in counts], len(compute), 0.0)
    return Trade(
        threshold=threshold,
        accuracy=int(answers.right.gather(0, first[None]).sum()) / num,
        mean_blocks=sum(n * (index + 1) for n, index in zip(counts, blocks, strict=True)) / num,
        exit_share=exit_share,
        compute_share=_compute_share(exit_share, compute),
    )


def _compute_share(exit_share: Sequence[float], compute: Sequence[BlockCompute]) -> float | None:
    whole = sum(block.layers for block in compute)
    if whole == 0:
        return None
    up_to = accumulate(block.layers + block.exit for block in compute)
    return sum(share * cost for share, cost in zip(exit_share, up_to, strict=True)) / whole


def _by_block(blocks: list[int], values: list[T], num_blocks: int, silent: T) -> tuple[T, ...]:
    """One value a block: those of the blocks that predict, and ``silent`` for the others."""
    known = dict(zip(blocks, values, strict=True))
    return tuple(known.get(index, silent) for index in range(num_blocks))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

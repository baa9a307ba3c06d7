"""ZeroLock's loss: what weighs how much, and in which block."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.methods import Lesson
from tests.methods.trials import built

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
BEFORE = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
TARGETS = torch.tensor([0, 1])
CE = (math.log(4 / 3) + math.log(2)) / 2


class Says(torch.nn.Module):
    """Predicts its features."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def loss(alpha: float, late: dict[str, Tensor], auxiliary: torch.nn.Module | None) -> float:
    lesson = Lesson(LOGITS, LOGITS, TARGETS, late=late)
    found = built("zerolock", alpha=alpha).local_loss(auxiliary, lesson, F.cross_entropy)
    assert found.logits is LOGITS
    return found.value.item()


@pytest.mark.parametrize("auxiliary", [Says(), None])
def test_the_loss_by_hand(auxiliary: torch.nn.Module | None) -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) and KL((1/2, 1/2) || (1/4, 3/4)); in the last block, too."""
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    second = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    expected = 0.6 * CE + 0.4 * (first + second) / 2
    assert loss(0.6, {"prediction": BEFORE}, auxiliary) == pytest.approx(expected, rel=1e-6)


def test_the_first_block_has_the_task_alone() -> None:
    assert loss(0.6, {}, Says()) == pytest.approx(CE, rel=1e-6)


def test_a_prediction_in_bf16_is_compared_in_float32() -> None:
    lesson = Lesson(LOGITS, LOGITS.bfloat16(), TARGETS, late={"prediction": BEFORE})
    found = built("zerolock").local_loss(Says(), lesson, F.cross_entropy)
    assert found.value.dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_a_weight_that_cannot_be_is_refused(alpha: Any) -> None:
    with pytest.raises(RecipeError, match=r"method\.alpha"):
        built("zerolock", alpha=alpha)

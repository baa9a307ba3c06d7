"""SGR: the loss against its formula, what travels, and attention that is differentiated twice."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll.blocks.blueprint import build_method
from ppll.errors import RecipeError
from ppll.losses.classification import cross_entropy
from ppll.message import Kind, Message
from ppll.methods import Lesson
from ppll.methods.sgr import GRADIENT, SGR, ReconciledLoss
from tests.faults import recipe
from tests.interleaving import MadeUpBatches, blueprint_of, built_blocks, small_recipe

TARGETS = torch.tensor([2, 0, 1])


def lesson_of(weight: Tensor, inputs: Tensor, before: Tensor | None = None) -> Lesson:
    inputs = inputs.clone().requires_grad_()
    late = {} if before is None else {GRADIENT: before}
    return Lesson(inputs, (inputs @ weight).tanh(), TARGETS, late=late)


def slow_value(weight: Tensor, head: nn.Module, inputs: Tensor, before: Tensor) -> float:
    """Cross-entropy and squared distances, sample by sample."""
    total = 0.0
    for row, reference, target in zip(inputs, before, TARGETS, strict=True):
        row = row.clone().requires_grad_()
        loss = -F.log_softmax(head((row @ weight).tanh()), dim=0)[target]
        (gradient,) = torch.autograd.grad(loss, row)
        distance = sum((a - b) ** 2 for a, b in zip(gradient, reference, strict=True))
        total += (loss + 0.5 * distance).item()
    return total / 3


def test_value_and_gradient_against_the_formula() -> None:
    """The gradient by differences of the slow value, in double precision."""
    head = nn.Linear(5, 3).double()
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    inputs, before = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    value = partial(slow_value, head=head, inputs=inputs, before=before)
    method = SGR(strength=0.5)
    loss = method.local_loss(head, lesson_of(weight, inputs, before), cross_entropy)
    assert loss.value.item() == pytest.approx(value(weight.detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.value, weight)
    for position in [(0, 0), (3, 4), (1, 2)]:
        step = torch.zeros_like(weight)
        step[position] = 1e-5
        low, high = (value(weight.detach() + sign * step) for sign in (-1, 1))
        assert gradient[position].item() == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_the_first_block_has_the_task_alone() -> None:
    head, weight, inputs = nn.Linear(5, 3), torch.randn(4, 5), torch.randn(3, 4)
    lesson = lesson_of(weight, inputs)
    loss = SGR(strength=9.0).local_loss(head, lesson, cross_entropy)
    assert torch.equal(loss.value, cross_entropy(head(lesson.features), TARGETS))


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_what_travels_is_the_gradient_of_every_sample_s_own_loss(network: str) -> None:
    """Without the distance, and not scaled where a batch travels as several messages."""
    blocks = built_blocks(blueprint_of(small_recipe(network, "sgr"), MadeUpBatches()))
    tensors = MadeUpBatches().train_batch(0, 0)
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, num_parts=2, share=0.25, tensors=tensors)
    forwarded = blocks[0].forward(message)
    passage = blocks[0]._passage
    assert passage is not None
    features = passage.features.detach().clone().requires_grad_()
    loss = cross_entropy(blocks[0].modules.auxiliary(features), message.targets)
    (expected,) = torch.autograd.grad(loss, features)
    late = blocks[0].learn()
    assert set(late) == {GRADIENT}
    torch.testing.assert_close(late[GRADIENT], 6 * expected)
    assert not late[GRADIENT].requires_grad
    blocks[1].forward(forwarded)
    own = blocks[1].learn(late)[GRADIENT]
    shape = blocks[1].method.late_shapes(blocks[1].site)[GRADIENT]
    assert own.shape == (6, *shape)


def test_attention_takes_part_in_the_distance() -> None:
    gradients = []
    for strength in (0.0, 1.0):
        blocks = built_blocks(blueprint_of(small_recipe("vit", "sgr"), MadeUpBatches()))
        method = SGR(strength=strength)
        for block in blocks:
            block.method = method
        message = Message(
            kind=Kind.TRAIN, sequence=0, step=1, tensors=MadeUpBatches().train_batch(0, 0)
        )
        late: dict[str, Tensor] = {}
        for block in blocks[:2]:
            message = block.forward(message)
            late = block.learn(late)
        gradients.append(dict(blocks[1].modules.named_parameters())["layer1.attention.qkv.weight"])
    assert not torch.equal(gradients[0].grad, gradients[1].grad)


def test_late_part_is_of_its_own_loss_only() -> None:
    own = torch.ones(3, 5)
    loss = ReconciledLoss(torch.zeros(()), torch.zeros(3, 3), own)
    lesson = lesson_of(torch.randn(4, 5), torch.randn(3, 4))
    part = SGR().late_part(lesson, loss)
    assert torch.equal(part[GRADIENT], own)


def test_small_gradients_are_not_lost_in_float16() -> None:
    """That of a mean over so many samples would be zero there."""
    head = nn.Linear(4, 3)
    nn.init.uniform_(head.weight, -1e-3, 1e-3)
    features, targets = torch.randn(4096, 4), torch.randint(3, (4096,))
    found = []
    for dtype in (torch.float32, torch.float16):
        own = features.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is torch.float16):
            loss = SGR().local_loss(head, Lesson(own, own, targets), cross_entropy)
        assert isinstance(loss, ReconciledLoss)
        found.append(loss.gradient.float())
    assert (found[0] - found[1]).norm() < 0.01 * found[0].norm()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.strength=-1", "method.strength must be at least 0"),
        ("method.strength=inf", "method.strength: inf is not a finite number"),
        ("method.lag=2", "unknown option of method 'sgr' 'method.lag'"),
        ("method.auxiliary=none", "unknown auxiliary network"),
    ],
)
def test_options_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(recipe().with_settings(["method.name=sgr", setting]))

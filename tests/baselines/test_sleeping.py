"""The halves of an emulated backward, taken apart as the schedules of torch take them apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.pipelining._backward import (
    stage_backward,
    stage_backward_input,
    stage_backward_weight,
)

from ppll.baselines.sleeping import EmulatedChunk, Sleeper

FORWARD_S, INPUT_S, WEIGHT_S = 0.02, 0.04, 0.03
NOISE_S = 0.009
"""Less than any two of the times differ by."""


class Noted(Sleeper):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def __call__(self, seconds: float) -> None:
        if seconds:
            self.asked.append(round(seconds, 6))
        super().__call__(seconds)


def chunk(sleeper: Sleeper, parameter_bytes: int = 0) -> EmulatedChunk:
    backward_s = INPUT_S + WEIGHT_S
    share = WEIGHT_S / backward_s
    inputs, outputs = torch.empty(1, 6), torch.empty(1, 3)
    return EmulatedChunk(sleeper, FORWARD_S, backward_s, share, inputs, outputs, parameter_bytes)


def passage(module: EmulatedChunk) -> tuple[Tensor, Tensor, Tensor]:
    inputs = torch.zeros(1, 6, requires_grad=True)
    return inputs, module(inputs), torch.ones(1, 3)


def seconds_of(action: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    begin = time.monotonic()
    result = action(*args)
    return time.monotonic() - begin, result


def test_each_half_takes_its_own_time() -> None:
    module = chunk(Noted())
    taken: dict[str, list[float]] = {"forward": [], "whole": [], "input": [], "weight": []}
    for _ in range(3):
        inputs, outputs, gradient = passage(module)
        seconds, _ = seconds_of(stage_backward, (outputs,), (gradient,), [inputs])
        taken["whole"].append(seconds)
        inputs = torch.zeros(1, 6, requires_grad=True)
        seconds, outputs = seconds_of(module, inputs)
        taken["forward"].append(seconds)
        halves = (outputs,), (gradient,), [inputs], module.parameters()
        seconds, (_, groups) = seconds_of(stage_backward_input, *halves)
        taken["input"].append(seconds)
        seconds, _ = seconds_of(stage_backward_weight, module.parameters(), groups)
        taken["weight"].append(seconds)
    whole_s = INPUT_S + WEIGHT_S
    wanted = {"forward": FORWARD_S, "whole": whole_s, "input": INPUT_S, "weight": WEIGHT_S}
    for what, seconds in wanted.items():
        # What was overslept is made good the next time, so one may be a little short.
        assert seconds - 0.001 < min(taken[what]) < seconds + NOISE_S, what


def test_no_half_is_slept_twice_or_left_out() -> None:
    sleeper = Noted()
    module = chunk(sleeper)
    inputs, outputs, gradient = passage(module)
    assert sleeper.asked == [FORWARD_S]
    gradients, groups = stage_backward_input((outputs,), (gradient,), [inputs], module.parameters())
    assert sleeper.asked == [FORWARD_S, INPUT_S]
    assert module.weight.grad is None
    assert gradients[0].shape == inputs.shape
    stage_backward_weight(module.parameters(), groups)
    assert sleeper.asked == [FORWARD_S, INPUT_S, WEIGHT_S]
    assert module.weight.grad is not None


def test_a_first_chunk_takes_as_long_without_a_gradient_to_send() -> None:
    sleeper = Noted()
    chunk(sleeper)(torch.zeros(1, 6)).sum().backward()
    assert sleeper.asked == [FORWARD_S, INPUT_S + WEIGHT_S]


def test_gradients_have_the_size_of_the_weights() -> None:
    module = chunk(Noted(), parameter_bytes=4000)
    inputs, outputs, _ = passage(module)
    outputs.sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.nbytes == 4000
    assert inputs.grad is not None


def test_an_output_can_be_cut_off_its_graph() -> None:
    _, outputs, _ = passage(chunk(Noted()))
    assert not outputs._is_view()
    assert outputs.requires_grad


@pytest.mark.slow  # a millisecond counts: for a machine that does nothing else
def test_many_short_sleeps_take_no_longer_than_they_should() -> None:
    sleeper = Sleeper()
    taken = []
    for _ in range(5):
        begin = time.monotonic()
        for _ in range(50):
            sleeper(0.001)
        taken.append(time.monotonic() - begin)
    assert 0.0495 < min(taken) < 0.053

"""MAN and MAN++: what follows the next block, where it stands, and how it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ppll
from ppll.auxiliary.momentum import MomentumLayer
from ppll.blocks.blueprint import build_method
from ppll.errors import RecipeError, WorkerError
from ppll.message import FEATURES, Kind, Message
from ppll.testing import Fault
from tests.faults import injected, recipe
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)


def momentum_layer(scales: bool = False, momentum: float = 0.9) -> MomentumLayer:
    return MomentumLayer(nn.Linear(3, 3), nn.Linear(3, 2), momentum, scales)


def followed(layer: MomentumLayer) -> torch.Tensor:
    return torch.cat([p.flatten() for p in layer.following.parameters()])


def test_the_average_in_closed_form() -> None:
    """theta_0 at first, then m ** n of it and (1 - m) m ** (n - i) of each theta_i."""
    layer, momentum = momentum_layer(), 0.9
    thetas = [torch.randn(12, dtype=torch.float64) for _ in range(6)]
    for theta in thetas:
        layer.follow(theta.float())
    expected = momentum**5 * thetas[0]
    for i, theta in enumerate(thetas[1:], 1):
        expected = expected + (1 - momentum) * momentum ** (5 - i) * theta
    torch.testing.assert_close(followed(layer).double(), expected, rtol=1e-5, atol=1e-6)
    assert layer.num_followed == 6


def test_the_first_values_are_taken_over_as_they_are() -> None:
    layer, theta = momentum_layer(), torch.randn(12)
    layer.follow(theta)
    assert torch.equal(followed(layer), theta)


def test_the_first_values_replace_whatever_stood_there() -> None:
    layer, theta = momentum_layer(), torch.randn(12)
    with torch.no_grad():
        for parameter in layer.following.parameters():
            parameter.fill_(1e30)
    layer.follow(theta)
    assert torch.equal(followed(layer), theta)


def test_what_is_frozen_in_the_network_is_learned_beside_it() -> None:
    """As with low-rank additions: frozen, the layer would stay at random values."""
    layer = MomentumLayer(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2), 0.9, scales=False)
    assert all(p.requires_grad for p in layer.learned.parameters())
    assert not any(p.requires_grad for p in layer.following.parameters())


def test_a_batch_in_parts_moves_the_average_once() -> None:
    """Whatever a batch travels as, its blocks are updated once, and the average is of updates."""
    recipe = small_recipe(method="man", accumulate=3)
    [first, *_] = train_interleaved(recipe, 2, batches=MadeUpBatches((6, 6)))
    layer = first.modules.auxiliary
    assert isinstance(layer, MomentumLayer)
    assert layer.num_followed == 4  # two epochs of two batches


def test_a_skipped_batch_moves_no_average() -> None:
    batches = MadeUpBatches()
    blocks = built_blocks(blueprint_of(small_recipe(method="man", on_nonfinite="skip"), batches))
    before = digest(blocks)
    tensors = {name: value.clone() for name, value in batches.train_batch(0, 0).items()}
    tensors[FEATURES].fill_(float("nan"))
    blocks[0].forward(Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors))
    blocks[0].learn(slow=blocks[1].published_parameters() + 1)
    assert blocks[0].counts.take().skipped == len(tensors[FEATURES])
    assert digest(blocks) == before


@pytest.mark.parametrize("scales", [False, True])
def test_the_head_reads_the_weighted_sum(scales: bool) -> None:
    layer, inputs = momentum_layer(scales), torch.randn(4, 3)
    share = 1.0
    if scales:
        with torch.no_grad():
            layer.scale.fill_(1.5)
        share = 1.5
    expected = layer.head(share * layer.learned(inputs) + (2 - share) * layer.following(inputs))
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize("network", ["resnet", "vit"])
@pytest.mark.parametrize("method", ["man", "manpp"])
def test_the_layers_are_those_of_the_next_block(method: str, network: str) -> None:
    blueprint = blueprint_of(small_recipe(network, method), MadeUpBatches())
    for index in range(3):
        auxiliary = blueprint.outline(index).auxiliary
        own = blueprint.outline(index + 1).layers[0].module
        expected = [tuple(p.shape) for p in own.parameters()]
        assert [tuple(p.shape) for p in auxiliary.learned.parameters()] == expected
        assert [tuple(p.shape) for p in auxiliary.following.parameters()] == expected
        assert not any(p.requires_grad for p in auxiliary.following.parameters())
        extra = [n for n, _ in auxiliary.named_parameters(recurse=False)]
        assert extra == (["scale"] if method == "manpp" else [])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.lag=0", "method.lag"),
        ("method.momentum=1", "method.momentum must be from 0 to below 1"),
        ("method.auxiliary=none", "unknown auxiliary network"),
    ],
)
def test_options_that_cannot_be_are_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(recipe().with_settings(["method.name=man", setting]))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("method", ["manpp", "zerolock"])
def test_processes_give_the_same_bits_and_go_on_with_them(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two stages; on one, ``test_placements`` goes on with every method."""
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    base = recipe().with_settings([f"method.name={method}"])

    def fit(name: str, stages: int, resume: bool = False) -> str:
        placed = base.with_settings([f"runtime.stages={stages}"])
        return ppll.Trainer(placed, out=tmp_path / name, resume=resume).fit().weights_sha256

    expected = fit("one", 1)
    assert fit("four", 4) == expected
    with injected(Fault(2, 8)), pytest.raises(WorkerError):
        fit("broken", 4)
    assert fit("broken", 2, resume=True) == expected

"""InfoPro: what is weighted against what in which block, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ppll.errors import ModelError, RecipeError
from ppll.losses.contrastive import supervised_contrastive
from ppll.losses.reconstruction import image_reconstruction
from ppll.methods.infopro import InfoProNetwork
from ppll.site import BlockSite
from tests.interleaving import NETWORKS
from tests.methods.trials import (
    blocks_after_a_step,
    built,
    loss_of_one,
    recipe_with,
    same_bits_everywhere,
)

TARGETS = torch.tensor([0, 1, 1, 2])
every_network = pytest.mark.parametrize("network", NETWORKS)


def site_of(
    block_index: int = 0, num_blocks: int = 4, shape: tuple[int, ...] = (6, 4, 4)
) -> BlockSite:
    return BlockSite(block_index, num_blocks, (1, 8, 8), shape, 3)


def image() -> torch.Tensor:
    return torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(6, 4, 4), (17, 6)])
def test_reconstruction_and_task_are_weighted(shape: tuple[int, ...]) -> None:
    method, fields = built("infopro", lambda1_first=3.0, lambda2_first=0.25), {"image": image()}
    auxiliary, features, loss = loss_of_one(method, site_of(shape=shape), fields, TARGETS)
    assert isinstance(auxiliary, InfoProNetwork)
    logits, decoded = auxiliary.head(features), auxiliary.other(features)
    error = image_reconstruction(decoded, fields["image"])
    torch.testing.assert_close(loss.value, 3 * error + 0.25 * F.cross_entropy(logits, TARGETS))
    assert loss.logits is not None
    assert torch.equal(loss.logits, logits)


def test_the_contrast_is_that_of_projections_and_predicts_nothing() -> None:
    options: dict[str, Any] = {"objective": "contrast", "projection": 16, "temperature": 0.5}
    method, fields = built("infopro", lambda1_first=0.0, **options), {"image": image()}
    auxiliary, features, loss = loss_of_one(method, site_of(), fields, TARGETS)
    assert isinstance(auxiliary, InfoProNetwork)
    projections = auxiliary.head(features)
    assert projections.shape == (4, 16)
    expected = 0.5 * supervised_contrastive(projections, TARGETS, temperature=0.5)
    torch.testing.assert_close(loss.value, expected)
    assert loss.logits is None
    assert method.exit(auxiliary, features) is None
    assert method.exit(None, features) is features


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(2, [(6, 0)]), (3, [(6, 0), (1, 2)]), (4, [(6, 0), (3.5, 1), (1, 2)])],
)
def test_weights_go_linearly_from_the_first_block_to_the_last_but_one(
    num_blocks: int, expected: list[tuple[float, float]]
) -> None:
    ends = {"lambda1_first": 6.0, "lambda1_last": 1.0, "lambda2_first": 0.0, "lambda2_last": 2.0}
    method = built("infopro", **ends)
    found = []
    for index in range(num_blocks - 1):
        auxiliary = method.build_auxiliary(site_of(index, num_blocks))
        assert isinstance(auxiliary, InfoProNetwork)
        found.append((auxiliary.reconstruction_weight, auxiliary.task_weight))
    assert found == [pytest.approx(pair) for pair in expected]


@every_network
@pytest.mark.parametrize("objective", ["softmax", "contrast"])
def test_every_block_learns_from_a_batch(objective: str, network: str) -> None:
    blocks_after_a_step(recipe_with("infopro", network, f"objective={objective}"))


@every_network
def test_the_same_bits_on_every_placement(network: str) -> None:
    assert same_bits_everywhere(recipe_with("infopro", network, "objective=contrast"))


def test_data_that_are_no_images_are_refused() -> None:
    with pytest.raises(ModelError, match="'infopro' reconstructs images"):
        built("infopro").build_auxiliary(BlockSite(0, 2, (20,), (12,), 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda1_first": -1.0}, r"method.lambda1_first must be at least 0 and finite"),
        ({"lambda2_last": float("inf")}, r"method.lambda2_last must be at least 0 and finite"),
        ({"temperature": 0.0}, r"method.temperature must be at least 0.001"),
        ({"projection": 0}, r"method.projection must be above 0"),
        ({"objective": "mse"}, r"method.objective"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built("infopro", **options)

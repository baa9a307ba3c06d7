"""SCPL: blocks learn from a contrast alone; only the last predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppll.errors import ModelError, RecipeError
from ppll.losses.contrastive import supervised_contrastive
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


@pytest.mark.parametrize("feature_shape", [(6, 4, 4), (17, 6), (6,)])
def test_the_loss_is_the_contrast_of_projections(feature_shape: tuple[int, ...]) -> None:
    method = built("scpl", auxiliary_options={"hidden": 8}, projection=16, temperature=0.2)
    site = BlockSite(0, 4, (1, 8, 8), feature_shape, 3)
    auxiliary, features, loss = loss_of_one(method, site, {}, TARGETS)
    projections = auxiliary(features)
    assert projections.shape == (4, 16)
    expected = supervised_contrastive(projections, TARGETS, temperature=0.2)
    torch.testing.assert_close(loss.value, expected)


def test_only_the_last_block_predicts() -> None:
    method, site = built("scpl"), BlockSite(0, 4, (1, 8, 8), (6,), 3)
    auxiliary, features, loss = loss_of_one(method, site, {}, TARGETS)
    assert loss.logits is None
    assert method.exit(auxiliary, features) is None
    assert method.exit(None, features) is features


@pytest.mark.parametrize("options", [{"auxiliary": "mlp-sr"}, {}])
def test_targets_of_tokens_are_refused_whatever_projects(options: dict[str, Any]) -> None:
    site = BlockSite(0, 4, (8,), (8, 6), 3, num_tokens=3, predicts_tokens=True)
    with pytest.raises(ModelError, match=r"a contrast compares .* here: choose another method\.n"):
        built("scpl", **options).build_auxiliary(site)


@every_network
@pytest.mark.parametrize("setting", ["auxiliary_options.hidden=0", "auxiliary=mlp-sr"])
def test_every_block_learns_from_a_batch(setting: str, network: str) -> None:
    blocks_after_a_step(recipe_with("scpl", network, setting))


@every_network
def test_the_same_bits_on_every_placement(network: str) -> None:
    assert same_bits_everywhere(recipe_with("scpl", network))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"method.temperature must be at least 0.001"),
        ({"projection": 0}, r"method.projection must be above 0"),
        ({"auxiliary": "none"}, r"unknown auxiliary network 'none'"),
        ({"auxiliary": "pooled-linear"}, r"'pooled-linear' is zero at first, .*'projector'"),
        ({"auxiliary": "frozen-readout"}, r"'frozen-readout' makes the network's .*'projector'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built("scpl", **options)

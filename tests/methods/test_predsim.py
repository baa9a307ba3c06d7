"""Local error signals: what is weighted against what, and where."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ppll.errors import ModelError, RecipeError
from ppll.losses.similarity import similarity_matching
from ppll.methods.predsim import PredSimNetwork
from ppll.site import BlockSite
from tests.interleaving import NETWORKS
from tests.methods.trials import blocks_after_a_step, built, loss_of_one, recipe_with

TARGETS = torch.tensor([0, 1, 1, 2])
every_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.mark.parametrize("feature_shape", [(6, 4, 4), (17, 6), (6,)])
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.99, 1.0])
def test_prediction_and_similarity_are_weighted(
    beta: float, feature_shape: tuple[int, ...]
) -> None:
    site = BlockSite(0, 4, (1, 8, 8), feature_shape, 3)
    auxiliary, features, loss = loss_of_one(built("predsim", beta=beta), site, {}, TARGETS)
    assert isinstance(auxiliary, PredSimNetwork)
    logits = auxiliary.head(features)
    similarity = similarity_matching(auxiliary.other(features), TARGETS, 3)
    expected = (1 - beta) * F.cross_entropy(logits, TARGETS) + beta * similarity
    torch.testing.assert_close(loss.value, expected)
    assert loss.logits is not None
    assert torch.equal(loss.logits, logits)


@every_network
def test_every_block_learns_from_a_batch(network: str) -> None:
    blocks_after_a_step(recipe_with("predsim", network))


@every_network
def test_the_head_is_the_recipe_s_choice(network: str) -> None:
    blocks = blocks_after_a_step(recipe_with("predsim", network, "auxiliary=conv-2fc"))
    auxiliary = blocks[0].modules.auxiliary
    assert auxiliary is not None
    assert auxiliary.get_submodule("head.hidden")


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(RecipeError, match=r"method.beta must be from 0 to 1"):
        built("predsim", beta=beta)


@pytest.mark.parametrize("auxiliary", ["pooled-linear", "mlp-sr"])
def test_targets_of_tokens_are_refused_whatever_the_head(auxiliary: str) -> None:
    site = BlockSite(0, 4, (8,), (8, 6), 3, num_tokens=3, predicts_tokens=True)
    with pytest.raises(ModelError, match=r"method 'predsim' compares .*: choose another method"):
        built("predsim", auxiliary=auxiliary).build_auxiliary(site)

"""The classifier of local error signals: how far it pools, and that it says nothing at first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppll.auxiliary import auxiliaries
from ppll.auxiliary.pooled_linear import _window
from ppll.errors import RecipeError
from ppll.models import initialise
from ppll.site import BlockSite


def build(feature_shape: tuple[int, ...], **options: int) -> nn.Module:
    site = BlockSite(0, 2, (3, 8, 8), feature_shape, 10)
    return auxiliaries.build("pooled-linear", options, site)


@pytest.mark.parametrize(
    ("channels", "size", "most", "window"),
    [
        (16, (16, 16), 4096, (1, 1)),
        (16, (32, 32), 4096, (2, 2)),
        (16, (32, 32), 8192, (2, 1)),
        (64, (8, 8), 1024, (2, 2)),
        (64, (7, 7), 1024, (2, 2)),
        (64, (8, 8), 1, (8, 8)),
        (12, (7, 1), 30, (4, 1)),
        (12, (1, 1), 4, (1, 1)),
    ],
)
def test_windows_double_by_turns_until_few_enough_numbers_are_left(
    channels: int, size: tuple[int, int], most: int, window: tuple[int, int]
) -> None:
    assert _window(channels, size, most) == window


@pytest.mark.parametrize(
    ("feature_shape", "num_inputs"),
    [((16, 32, 32), 16 * 16 * 16), ((5, 7, 7), 5 * 49), ((17, 12), 16 * 12), ((12,), 12)],
)
def test_it_has_the_parameters_of_the_paper(
    feature_shape: tuple[int, ...], num_inputs: int
) -> None:
    auxiliary = build(feature_shape)
    assert auxiliary(torch.randn(2, *feature_shape)).shape == (2, 10)
    assert sum(p.numel() for p in auxiliary.parameters()) == num_inputs * 10 + 10


def test_odd_maps_are_pooled_whole() -> None:
    """The last window of five pixels in pairs has one."""
    pool = build((4, 5, 5), max_inputs=36).get_submodule("pool")
    maps = torch.arange(5.0).expand(1, 4, 5, 5)
    assert pool(maps)[0, 0, 2].tolist() == [0.5, 2.5, 4.0]


def test_it_says_nothing_at_first() -> None:
    auxiliary = build((4, 5, 5))
    initialise(auxiliary, "auxiliary.x", seed=3)
    assert not auxiliary(torch.randn(2, 4, 5, 5)).any()


def test_it_must_read_something() -> None:
    with pytest.raises(RecipeError, match="max_inputs must be at least 1, found 0"):
        build((4, 5, 5), max_inputs=0)

"""What similarity matching compares: a convolution that keeps channels and size."""

from __future__ import annotations

import pytest
import torch

from ppll.auxiliary.similarity_layer import similarity_layer
from ppll.errors import ModelError
from ppll.site import BlockSite


@pytest.mark.parametrize(
    ("feature_shape", "num_parameters", "map_shape"),
    [
        ((4, 6, 5), 9 * 4 * 4, (4, 6, 5)),
        ((17, 12), 9 * 12 * 12, (12, 4, 4)),
        ((12,), 12 * 12, (12, 1, 1)),
    ],
)
def test_it_has_the_parameters_of_the_paper(
    feature_shape: tuple[int, ...], num_parameters: int, map_shape: tuple[int, ...]
) -> None:
    layer = similarity_layer("predsim", BlockSite(0, 2, (3, 8, 8), feature_shape, 10))
    assert layer(torch.randn(2, *feature_shape)).shape == (2, *map_shape)
    assert sum(p.numel() for p in layer.parameters()) == num_parameters


def test_other_features_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^'predsim' reads maps.* another method\.name"):
        similarity_layer("predsim", BlockSite(0, 2, (3, 8, 8), (1, 2, 3, 4), 10))

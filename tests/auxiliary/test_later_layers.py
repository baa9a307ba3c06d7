"""AugLocal's auxiliary network: which layers, how many, and how they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppll.auxiliary.later_layers import later_layers, picked, pyramidal_depth
from ppll.errors import ModelError, RecipeError
from ppll.models import Layer, Network, feature_shapes, initialise
from ppll.models.empty import with_memory
from ppll.models.resnet import resnet
from ppll.models.vit import vit
from ppll.site import BlockSite

RESNET = resnet((3, 16, 16), 10, depth=20, width=4)
VIT = vit((3, 16, 16), 10, width=8, depth=6, heads=2)


def site_at(network: Network, index: int, block: int = 0, num_blocks: int = 4) -> BlockSite:
    """The cut behind a layer."""
    shapes = feature_shapes(network, (3, 16, 16))
    behind = network.layers[index + 1 :]
    return BlockSite(
        block,
        num_blocks,
        (3, 16, 16),
        shapes[index],
        10,
        (3, 16, 16),
        behind,
        tuple(shapes[index + 1 :]),
    )


def ready(module: nn.Module) -> nn.Module:
    module = with_memory(module, torch.device("cpu"))
    initialise(module, "auxiliary.x", seed=3)
    return module


@pytest.mark.parametrize(
    ("num_layers", "depth", "expected"),
    [
        (8, 2, (3, 7)),
        (8, 4, (1, 3, 5, 7)),
        (7, 2, (3, 6)),  # 3.5 is rounded up to the fourth
        (10, 3, (2, 6, 9)),
        (5, 1, (4,)),
        (3, 3, (0, 1, 2)),
        (2, 6, (0, 1)),
        (0, 2, ()),
    ],
)
def test_layers_are_picked_evenly_up_to_the_last(
    num_layers: int, depth: int, expected: tuple[int, ...]
) -> None:
    assert picked(num_layers, depth) == expected


def test_the_depth_falls_to_half_of_what_is_beyond_one() -> None:
    """d(1 - tau i/(K - 2)) + tau i/(K - 2) with tau = 0.5, K = 5, d = 9."""
    assert [pyramidal_depth(9, i, 5) for i in range(4)] == [9, 8, 6, 5]  # 9, 7.67, 6.33, 5
    assert [pyramidal_depth(1, i, 5) for i in range(4)] == [1, 1, 1, 1]
    assert pyramidal_depth(6, 0, 2) == 6


def test_residual_layers_keep_their_width_and_read_what_is_there() -> None:
    """Behind stage 1's first layer lie eight; the fourth (stage 2's second) and the last."""
    module = ready(later_layers(site_at(RESNET, 1), depth=2))
    first, second = module.get_submodule("layers")
    assert first.conv1.weight.shape == (8, 4, 3, 3)
    assert (first.conv1.stride, second.conv1.stride) == ((2, 2), (2, 2))
    assert second.conv1.weight.shape == (16, 8, 3, 3)
    assert list(dict(module.get_submodule("layers").named_children())) == ["stage2_1", "stage3_2"]
    residual = [9 * (i * o + o * o) + 4 * o + i * o + 2 * o for i, o in [(4, 8), (8, 16)]]
    assert sum(p.numel() for p in module.parameters()) == sum(residual) + 16 * 10 + 10
    assert module(torch.randn(2, 4, 16, 16)).shape == (2, 10)


def test_a_strided_layer_keeps_its_stride() -> None:
    module = ready(later_layers(site_at(RESNET, 1), depth=8))
    strides = [layer.conv1.stride[0] for layer in module.get_submodule("layers")]
    assert strides == [1, 1, 2, 1, 1, 2, 1, 1]


def test_transformer_layers_are_the_network_s() -> None:
    module = ready(later_layers(site_at(VIT, 2), depth=2))
    assert list(dict(module.get_submodule("layers").named_children())) == ["layer3", "layer5"]
    one_layer = sum(p.numel() for p in VIT.layers[1].module.parameters())
    head = 2 * 8 + 8 * 10 + 10
    assert sum(p.numel() for p in module.parameters()) == 2 * one_layer + head
    assert module(torch.randn(2, 17, 8)).shape == (2, 10)


def test_nothing_is_shared_and_no_values_are_copied() -> None:
    network = vit((3, 16, 16), 10, width=8, depth=3, heads=2)
    module = ready(later_layers(site_at(network, 1), depth=1))
    own = dict(module.get_submodule("layers.layer2").named_parameters())
    theirs = dict(network.layers[3].module.named_parameters())
    assert own.keys() == theirs.keys()
    assert not torch.equal(own["expand.weight"], theirs["expand.weight"])
    assert all(own[name] is not theirs[name] for name in own)


def test_frozen_layers_are_learned_here() -> None:
    network = vit((3, 16, 16), 10, width=8, depth=3, heads=2)
    network.layers[3].module.requires_grad_(False)
    module = later_layers(site_at(network, 1), depth=1)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("network", [RESNET, VIT])
def test_before_the_head_there_is_the_classifier_alone(network: Network) -> None:
    site = site_at(network, len(network.layers) - 2)
    module = ready(later_layers(site, depth=4))
    assert len(module.get_submodule("layers")) == 0
    assert module(torch.randn(2, *site.feature_shape)).shape == (2, 10)


class Scale(nn.Module):
    """Cannot reset itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = features * self.weight.sum(0) + self.bias + self.table
        return made


def own_layers() -> Network:
    part = nn.Sequential(nn.Linear(3, 3), Scale())
    return Network.from_modules([nn.Linear(3, 3), part, nn.Linear(3, 2)])


def head_of(network: Network) -> nn.Module:
    behind = network.layers[1:]
    site = BlockSite(0, 2, (3,), (3,), 2, (3,), behind, ((3,), (2,)))
    return with_memory(later_layers(site, depth=1), torch.device("cpu"))


def test_what_cannot_reset_itself_starts_like_what_it_is_like() -> None:
    network = own_layers()
    given = {name: tensor.clone() for name, tensor in network.named_tensors().items()}
    module = head_of(network)
    initialise(module, "auxiliary.0", 3, given)
    own = module.get_submodule("layers.1.layer")
    fresh, theirs = own.get_submodule("1"), network.layers[1].module.get_submodule("1")
    weight, other = fresh.get_parameter("weight"), theirs.get_parameter("weight")
    assert not torch.equal(weight, other)
    assert torch.equal(weight.flatten().sort()[0], other.flatten().sort()[0])
    assert torch.equal(fresh.get_parameter("bias"), torch.zeros(3))
    assert torch.equal(fresh.get_buffer("table"), torch.arange(3.0))
    linear = nn.Linear(3, 3)  # resets itself, so it starts as such a layer does anywhere
    initialise(linear, "auxiliary.0.layers.1.layer.0", 3)
    assert torch.equal(own.get_parameter("0.weight"), linear.weight)
    assert all(torch.equal(given[n], tensor) for n, tensor in network.named_tensors().items())
    again, other_seed = head_of(network), head_of(network)
    initialise(again, "auxiliary.0", 3, given)
    initialise(other_seed, "auxiliary.0", 4, given)
    assert torch.equal(again.get_parameter("layers.1.layer.1.weight"), weight)
    assert not torch.equal(other_seed.get_parameter("layers.1.layer.1.weight"), weight)


def test_with_nothing_to_draw_from_it_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"'auxiliary\.0\.layers\.1\.layer\.1' \(Scale\) owns"):
        initialise(head_of(own_layers()), "auxiliary.0", 3)


def test_layers_that_do_not_fit_are_refused() -> None:
    layers = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, 10),
    ]
    network = Network(tuple(Layer(f"l{i}", layer) for i, layer in enumerate(layers)))
    with pytest.raises(ModelError, match=r"'auglocal' .*do not fit .*layer 'l2' \(Conv2d\) cannot"):
        later_layers(site_at(network, 0), depth=2)
    with pytest.raises(ModelError, match=r"another depth or method\.auxiliary\.$"):
        later_layers(site_at(network, 0), depth=2)


def test_a_depth_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"auglocal: depth must be at least 1, found 0"):
        later_layers(site_at(RESNET, 1), depth=0)


@pytest.mark.parametrize(
    ("depth", "block", "after", "strides"),
    [
        (2, 0, 3, [2, 2]),
        (4, 1, 7, [1, 2, 1]),
        (6, 0, 3, [1, 2, 1, 2, 1, 1]),
    ],
)
def test_maps_are_halved_where_the_authors_code_does(
    depth: int, block: int, after: int, strides: list[int]
) -> None:
    """ResNet-32 in four blocks cut as InfoPro does; the stem is layer 0."""
    network = resnet((3, 16, 16), 10, depth=32, width=4)
    module = ready(later_layers(site_at(network, after, block), depth=depth))
    found = [layer.conv1.stride[0] for layer in module.get_submodule("layers")]
    assert found == strides

"""The row of layers: its checks, its names, its first values and its shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ppll.errors import ModelError
from ppll.models import Layer, Network, feature_shapes, initialise, models, qualified


def row(*modules: nn.Module) -> Network:
    return Network.from_modules(modules)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> object:
        return self.function(features)


def test_qualified_names_join_with_a_dot_and_need_no_layer_name() -> None:
    assert qualified("stem", "conv.weight") == "stem.conv.weight"
    assert qualified("", "conv.weight") == "conv.weight"


# A user's own modules


def test_a_list_is_named_as_a_sequential_would() -> None:
    network = row(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert [layer.name for layer in network.layers] == ["0", "1", "2"]
    assert list(network.as_module().state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_sequential_keeps_its_names_and_nested_ones() -> None:
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    model = nn.Sequential(OrderedDict(features=inner, classifier=nn.Linear(3, 1)))
    network = Network.from_modules(model)
    assert [layer.name for layer in network.layers] == ["features", "classifier"]
    assert list(network.as_module().state_dict()) == list(model.state_dict())
    assert "features.0.weight" in model.state_dict()


def test_as_module_computes_what_the_row_computes_with_the_same_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    whole = Network.from_modules(model).as_module()
    x = torch.randn(5, 4)
    assert torch.equal(whole(x), model(x))
    assert [id(p) for p in whole.parameters()] == [id(p) for p in model.parameters()]


def test_one_layer_may_go_without_a_name() -> None:
    module = nn.Linear(2, 3)
    network = Network((Layer("", module),))
    assert network.as_module() is module
    initialise(module, "", seed=0)


class OwnForward(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("model", [nn.Linear(2, 2), OwnForward(nn.Linear(2, 2))])
def test_a_module_that_is_no_plain_row_is_refused(model: nn.Sequential) -> None:
    with pytest.raises(ModelError, match=f"cannot cut a {type(model).__name__}.*nn.Sequential"):
        Network.from_modules(model)


def test_a_function_that_makes_a_network_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model is <function .*give an nn\.Sequential or a list"):
        Network.from_modules(lambda: nn.Sequential())  # type: ignore[arg-type]


def test_a_name_is_no_network() -> None:
    with pytest.raises(ModelError, match=r"model is 'resnet': .* named as model\.name in the rec"):
        Network.from_modules("resnet")  # type: ignore[arg-type]


# Checks of the row


def test_an_empty_row_is_refused() -> None:
    with pytest.raises(ModelError, match="at least one layer"):
        row()


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"layer '0' must be an nn.Module, found builtin_function"):
        row(torch.relu)  # type: ignore[arg-type]


def test_a_module_with_state_that_stands_twice_is_refused() -> None:
    linear = nn.Linear(2, 2)
    message = r"'0.weight' and '2.weight' are the same parameter"
    with pytest.raises(ModelError, match=message):
        row(linear, nn.ReLU(), linear)
    with pytest.raises(ModelError, match=message):
        Network.from_modules(nn.Sequential(linear, nn.ReLU(), linear))


def test_a_module_without_state_may_stand_twice() -> None:
    relu = nn.ReLU()
    names = [layer.name for layer in row(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu).layers]
    assert names == ["0", "1", "2", "3"]


def test_a_shared_parameter_is_refused_by_both_names() -> None:
    embedding, readout = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
    readout.weight = embedding.weight
    layers = (Layer("embedding", embedding), Layer("head", nn.Sequential(readout)))
    message = r"'embedding.weight' and 'head.0.weight' are the same parameter"
    with pytest.raises(ModelError, match=message):
        Network(layers)


def test_a_shared_buffer_is_refused() -> None:
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    second.running_mean = first.running_mean
    with pytest.raises(ModelError, match=r"'0.running_mean' and '1.running_mean' .* buffer"):
        row(first, second)


def test_a_layer_may_share_within_itself() -> None:
    linear = nn.Linear(2, 2)
    assert len(row(nn.Sequential(linear, nn.ReLU(), linear), nn.Linear(2, 2)).layers) == 2


def test_a_layer_that_cannot_be_copied_is_refused() -> None:
    linear = nn.Linear(2, 2)
    linear.scaled = 2 * linear.weight
    with pytest.raises(ModelError, match=r"layer '0' \(Linear\) cannot be copied, .*computed"):
        feature_shapes(row(linear), (2,))


def test_what_has_no_shape_yet_or_is_sparse_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"parameter '1\.0\.weight' has no shape yet: let the model"
    ):
        row(nn.Linear(2, 2), nn.Sequential(nn.LazyLinear(2)))
    sparse = nn.Linear(2, 2)
    sparse.register_buffer("table", torch.eye(2).to_sparse())
    with pytest.raises(ModelError, match=r"buffer '0\.table' is sparse: give a dense one"):
        row(sparse)


class Counting(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}


def test_a_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"'1\.0' \(Counting\) keeps a state .* make buffers of it"
    ):
        row(nn.Linear(2, 2), nn.Sequential(Counting(2, 2)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "a"), "two layers are called 'a'"),
        (("a", ""), "needs a name"),
        (("a", "b.c"), "no dot"),
        (("a", "forward"), "no attribute of nn.Sequential"),
        (("a", "auxiliary"), "'auxiliary' is kept for what methods add"),
    ],
)
def test_names_that_cannot_stand_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Network(tuple(Layer(name, nn.Linear(1, 1)) for name in names))


@pytest.mark.parametrize(("num_stem", "num_head"), [(-1, 0), (0, -1), (2, 1)])
def test_stem_and_head_must_fit(num_stem: int, num_head: int) -> None:
    layers = (Layer("a", nn.Linear(1, 1)), Layer("b", nn.Linear(1, 1)))
    with pytest.raises(ModelError, match="num_stem"):
        Network(layers, num_stem, num_head)


# First values


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_first_values_depend_on_seed_and_name_alone() -> None:
    module = nn.Linear(3, 4)
    initialise(module, "layer0", seed=1)
    first = values(module)
    torch.manual_seed(99)
    other = nn.Linear(3, 4)
    initialise(nn.Linear(30, 40), "before", seed=1)
    initialise(other, "layer0", seed=1)
    assert same(first, values(other))
    initialise(other, "layer1", seed=1)
    assert not same(first, values(other))
    initialise(other, "layer0", seed=2)
    assert not same(first, values(other))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_layers_alone_start_as_in_the_whole_network(name: str) -> None:
    options = {"resnet": {"depth": 8}, "vit": {"depth": 2}}[name]
    network = models.build(name, options, (3, 8, 8), 10)
    whole = network.as_module()
    initialise(whole, "", seed=5)
    first = values(whole)
    for layer in reversed(models.build(name, options, (3, 8, 8), 10).layers):
        initialise(layer.module, layer.name, seed=5)
        alone = {qualified(layer.name, key): value for key, value in values(layer.module).items()}
        assert same(alone, {key: first[key] for key in alone})


def test_the_generator_is_left_as_it_was() -> None:
    module, before = nn.Linear(3, 4), torch.get_rng_state()
    initialise(module, "layer", seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_what_comes_from_the_meta_device_starts_the_same(name: str) -> None:
    options = {"resnet": {"depth": 8}, "vit": {"depth": 1}}[name]
    usual = models.build(name, options, (3, 8, 8), 10).as_module()
    initialise(usual, "", seed=3)
    with torch.device("meta"):
        empty = models.build(name, options, (3, 8, 8), 10).as_module()
    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else -7)
    initialise(empty, "", seed=3)
    assert same(values(empty), values(usual))


def test_a_used_batch_norm_forgets_what_it_has_seen() -> None:
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(8, 2) + 3)
    initialise(norm, "norm", seed=0)
    assert same(values(norm), values(nn.BatchNorm1d(2)))


def test_parameters_that_cannot_be_reset_are_refused_by_name() -> None:
    module = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(ModelError, match=r"'layer0\.0' \(MultiheadAttention\) owns in_proj_weight"):
        initialise(module, "layer0", seed=0)


def test_first_values_are_drawn_on_the_cpu_only() -> None:
    with pytest.raises(ValueError, match=r"'stem.weight' is on meta"):
        initialise(nn.Linear(2, 2, device="meta"), "stem", seed=0)


# Shapes of features


def test_feature_shapes_are_those_of_one_sample() -> None:
    network = row(nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    expected = [(8, 8, 8), (8, 4, 4), (128,), (5,)]
    assert feature_shapes(network, (3, 8, 8)) == expected


def test_tokens_may_be_whole_numbers() -> None:
    network = row(nn.Embedding(7, 4), nn.LayerNorm(4))
    assert feature_shapes(network, (5,), torch.int64) == [(5, 4), (5, 4)]


def test_a_trial_run_changes_nothing() -> None:
    network = row(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), Lambda(torch.rand_like))
    network.layers[2].module.eval()
    before, state = values(network.as_module()), torch.get_rng_state()
    feature_shapes(network, (2,))
    assert same(before, values(network.as_module()))
    assert torch.equal(torch.get_rng_state(), state)
    assert [layer.module.training for layer in network.layers] == [True, True, False, True]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x.tolist(), r"a list with a float at \[0\]\[0\]"),
        (lambda x: (x, None), r"a tuple with a NoneType at \[1\]"),
        (lambda x: {"x": x, "n": (x, 3)}, r"a dict with a int at \['n'\]\[1\]"),
        (lambda x: (x, x.mean()), r"a tuple with shape \(\) for 2 samples at \[1\]"),
        (lambda x: (x, x[:1]), r"a tuple with shape \(1, 3\) for 2 samples at \[1\]"),
        (lambda x: (x, x + 1j), r"a tuple with a tensor of torch\.complex64 at \[1\]"),
        (lambda x: (x > 0, x.argmax(1)), "a tuple without a floating tensor"),
        (lambda x: [x] * 10, "a list of 10 tensors"),
        (lambda x: (), "a tuple without a floating tensor"),
        (lambda x: None, "a NoneType"),
        (lambda x: x.argmax(1), "a tensor of torch.int64"),
        (lambda x: x.mean(), r"shape \(\) for 2 samples"),
        (lambda x: x.T, r"shape \(3, 2\) for 2 samples"),
    ],
)
def test_an_output_that_cannot_cross_a_cut_is_refused(
    function: Callable[[Tensor], object], found: str
) -> None:
    message = rf"layer '1' \(Lambda\) returns {found}, but .*Wrap it"
    with pytest.raises(ModelError, match=message):
        feature_shapes(row(nn.Linear(3, 3), Lambda(function)), (3,))


def test_a_layer_that_fails_is_named_with_what_it_got() -> None:
    network = row(nn.Linear(3, 4), nn.Linear(5, 6))
    message = r"layer '1' \(Linear\) cannot read samples of shape \(4,\): RuntimeError: .*shapes"
    with pytest.raises(ModelError, match=message) as caught:
        feature_shapes(network, (3,))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert network.layers[0].module.training

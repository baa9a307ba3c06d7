"""Any model as a row of layers: what is found, what is refused, and what is left as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ppll
from ppll.errors import ModelError
from ppll.models import Network
from ppll.models.splitting import Model, sample_of

SAMPLE = sample_of((6,))
TOKENS = sample_of((5,), 7)


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, features: Tensor, scale: float = 1.0) -> Tensor:
        return features + scale * torch.tanh(self.linear(features))


class Body(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.shift
        for layer in self.layers:
            features = layer(features)
        return features


class Plain(nn.Module):
    """A stem, a row of layers inside of a body, a head; tests put other forwards in its place."""

    def __init__(self, layers: list[nn.Module] | None = None) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))
        self.stem = nn.Linear(6, 8)
        self.body = Body(layers or [Residual() for _ in range(4)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor, mask: Tensor | None = None, flag: bool = False) -> Any:
        return self.finish(self.body(self.begin(inputs)))

    def begin(self, inputs: Tensor) -> Tensor:
        return self.stem(inputs) + self.token

    def finish(self, features: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(features)))


def refused(model: nn.Module, match: str, sample: Tensor = SAMPLE, **options: Any) -> None:
    with pytest.raises(ModelError, match=match):
        ppll.split(model, sample, **options)


def test_the_layers_are_those_of_the_model() -> None:
    model = Plain()
    network = ppll.split(model, SAMPLE)
    names = [layer.name for layer in network.layers]
    assert names == ["stem", *(f"body_layers_{i}" for i in range(4)), "head"]
    assert (network.num_stem, network.num_head) == (1, 1)
    assert network.layers[2].module is model.body.layers[1]
    assert network.named_tensors().keys() == dict(model.named_parameters()).keys()
    assert all(t is model.get_parameter(name) for name, t in network.named_tensors().items())
    features = SAMPLE
    for layer in network.layers:
        features = layer.module(features)
    assert torch.equal(features, model(SAMPLE))


def test_a_layer_takes_what_follows_it_along() -> None:
    class Doubling(Body):
        def forward(self, features: Tensor) -> Tensor:
            for layer in self.layers:
                features = 2 * layer(features, scale=0.5) + self.shift[:1] * 0
            return features

    model = Plain()
    model.body = Doubling([Residual() for _ in range(3)])
    refused(model, r"'body\.shift' and 'body\.shift' are the same parameter")
    Doubling.forward = lambda self, x: [x := 2 * m(x, scale=0.5) for m in self.layers][-1]
    del model.body.shift
    network = ppll.split(model, SAMPLE)
    assert network.named_tensors().keys() == dict(model.named_parameters()).keys()


def test_rows_and_networks_stay_as_they_are() -> None:
    row = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    network = ppll.split(row, SAMPLE)
    assert [layer.name for layer in network.layers] == ["0", "1", "2"]
    assert ppll.split(network, SAMPLE) is network
    assert isinstance(ppll.split(list(row), SAMPLE), Network)


def test_modes_and_the_random_state_stay_as_they_were() -> None:
    model = Plain()
    model.body.layers[1].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ppll.split(model, SAMPLE)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_optional_arguments_have_their_defaults() -> None:
    class Optional(Plain):
        def forward(
            self, inputs: Tensor, targets: Any = None, scale: float = 2.0, *, as_dict: bool = False
        ) -> Any:
            logits = scale * self.finish(self.body(self.begin(inputs)))
            if as_dict:
                return {"logits": logits}
            return logits if targets is None else F.cross_entropy(logits, targets)

    model = Optional()
    as_it_computes(model, ppll.split(model, SAMPLE))


def test_floats_that_are_read_as_tokens_are_in_range() -> None:
    class Reading(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 6)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.begin(self.table(inputs.long())[:, 0])))

    model = Reading()
    assert len(ppll.split(model, sample_of((6,))).layers) == 6


def test_a_skip_that_crosses_a_cut_is_refused_by_the_tensors_name() -> None:
    class Skipping(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            features = self.begin(inputs)
            return self.finish(self.body(features) + features)

    layers = r"'body\.layers\.0' to 'body\.layers\.3' \(4\)"
    why = r"'add' \(add\) of the stem is read again in the head\. Only what goes"
    refused(
        Skipping(), rf"before layer 'body\.layers\.0'\. Taken as layers were {layers}, but {why}"
    )


def test_a_batch_size_that_crosses_a_cut_is_refused() -> None:
    class Reshaping(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.begin(inputs)).reshape(inputs.shape[0], 8))

    refused(Reshaping(), r"'inputs' \(the model's input\) of the stem is read again in")


def test_a_forward_that_cannot_be_traced_is_refused() -> None:
    class Deciding(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs if inputs.sum() > 0 else -inputs)

    refused(Deciding(), r"cannot cut a Deciding: its forward cannot be traced .*list of modules")


def test_a_forward_that_is_another_in_training_is_refused() -> None:
    class Dropping(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(F.dropout(self.body(self.begin(inputs)), 0.1, self.training))

    refused(Dropping(), "something else in training than in evaluation")


class Pair(nn.Module):
    """Hands on what it made, and what it made that from."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, features: Any) -> Any:
        first = features[0] if isinstance(features, tuple) else features
        return self.linear(first), first


class Two(Residual):
    """Reads two tensors and makes two."""

    def forward(self, features: Tensor, mask: Tensor) -> Any:
        return super().forward(features) * mask, ~mask


def as_it_computes(model: nn.Module, network: Network) -> None:
    """The row computes what the model computes, of another batch than that of the trial."""
    inputs = torch.randn(5, 6)
    features: Any = inputs
    for layer in network.layers:
        features = layer.module(features)
    assert torch.equal(features, model(inputs))
    assert network.named_tensors().keys() == dict(model.named_parameters()).keys()


def test_a_layer_may_return_a_tuple_that_the_next_one_reads() -> None:
    class Unpacking(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.begin(inputs))[0])

    model = Unpacking([Pair(), Pair()])
    network = ppll.split(model, SAMPLE)
    assert network.layers[1].module is model.body.layers[0]
    as_it_computes(model, network)


def test_several_tensors_may_go_from_one_layer_to_the_next() -> None:
    class Masking(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            features, mask = self.begin(inputs), inputs[:, :1] > 0
            for layer in self.body.layers:
                features, mask = layer(features, mask)
            return self.finish(features * mask)

    model = Masking([Two() for _ in range(3)])
    del model.body.shift
    network = ppll.split(model, SAMPLE)
    as_it_computes(model, network)
    assert [len(layer.module(SAMPLE)) for layer in network.layers[:1]] == [2]


def test_a_mask_that_all_layers_read_is_refused_with_what_to_do() -> None:
    class Masking(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            features, mask = self.begin(inputs), inputs[:, :1] > 0
            for layer in self.body.layers:
                features, _ = layer(features, mask)
            return self.finish(features)

    refused(
        Masking([Two() for _ in range(3)]),
        r"'gt' \(gt\) of the stem is read again in layer 'body.layers.2'.* of them may hand on",
    )


def test_a_layer_that_returns_no_tensor_beside_one_is_refused() -> None:
    class Sized(Pair):
        def forward(self, features: Any) -> Any:
            return super().forward(features)[0], 8

    class Unpacking(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.begin(inputs))[0])

    refused(
        Unpacking([Sized(), Sized()]),
        r"layer 'body_layers_0' \(Sized\) returns a tuple with a int at \[1\], but .* Wrap it",
    )


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Both(Plain):
        def forward(self, inputs: Tensor) -> Any:
            return {"logits": self.finish(self.body(self.begin(inputs)))}

    refused(Both(), "returns a dict, not one tensor of logits")


def test_parameters_shared_across_a_cut_are_refused() -> None:
    model = Plain()
    model.body.layers[2].linear.weight = model.body.layers[0].linear.weight
    refused(model, r"'body.layers.0.linear.weight' and 'body.layers.2.linear.weight' are the same")


@pytest.mark.parametrize("kept", ["auxiliary", "context"])
def test_names_that_are_kept_for_methods_are_refused(kept: str) -> None:
    class Beginning(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(kept, nn.Linear(6, 6))

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(self.get_submodule(kept)(inputs))

    # An exported file would do without it, as it does without auxiliary networks.
    refused(Beginning(), f"layer 'stem' .* the name '{kept}.weight' is kept for what methods add")


def test_a_layer_that_is_called_twice_is_refused() -> None:
    class Looping(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.body(self.begin(inputs))))

    refused(Looping(), r"calls 'body\.layers\.0' more than once")


def test_parameters_that_the_forward_leaves_out_are_refused() -> None:
    class Forgetting(Plain):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.finish(self.body(self.stem(inputs)))

    refused(Forgetting(), "does not use 'token'")


def test_a_layer_that_changes_its_input_in_place_is_refused() -> None:
    class Doubling(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.mul_(2)

    layers = [nn.Linear(8, 8), Doubling(), nn.Linear(8, 8), nn.Tanh()]
    refused(Plain(layers), r"\(Doubling\) changes its input in place")


def test_an_activation_in_place_is_told_to_leave_its_input_alone() -> None:
    layers = [nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True)]
    ppll.split(Plain(layers), SAMPLE)  # It refuses what changes its input, or computes otherwise.
    assert repr(layers[1]) == "ReLU()"


@pytest.mark.parametrize("form", [list, lambda row: nn.Sequential(*row), Network.from_modules])
def test_a_plain_row_of_activations_in_place_leaves_inputs_alone(
    form: Callable[[list[nn.Module]], Model],
) -> None:
    block = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), nn.SiLU(inplace=True))
    row = [nn.Linear(6, 8), block, nn.Dropout(inplace=True), nn.Linear(8, 3)]
    features = SAMPLE
    for layer in ppll.split(form(row), SAMPLE).layers:
        before = features.clone()
        given, features = features, layer.module(features)
        assert torch.equal(given, before)
    assert "inplace" in repr(block[1])  # What follows in the layer is its own business.


def test_a_model_in_another_precision_is_told_so() -> None:
    refused(Plain().double(), r"cannot read a batch .*parameters in float32, by model\.float\(\)")


def test_a_model_without_a_row_is_refused() -> None:
    class Lonely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(inputs)

    refused(Lonely(), "cannot cut a Lonely: it keeps no row of layers")


def test_an_argument_that_must_be_given_is_refused() -> None:
    class Needing(Plain):
        def forward(self, inputs: Tensor, other: Tensor) -> Tensor:
            return super().forward(inputs + other)

    refused(
        Needing(), r"the Needing cannot read .* missing 1 required positional argument: 'other'"
    )


def test_data_of_another_shape_is_refused() -> None:
    refused(Plain(), r"the Plain cannot read a batch of shape \(2, 4\)", sample_of((4,)))


def test_a_model_elsewhere_is_refused() -> None:
    refused(Plain().to("meta"), "'token' of the Plain is on meta: give the model on the CPU")


def test_trained_as_a_run_of_one_stage(tmp_path: Any) -> None:
    model = Plain()
    inputs = torch.randn(40, 6)
    targets = (inputs.sum(1) > 0).long() + (inputs[:, 0] > 1).long()
    data = ppll.Dataset.from_arrays(
        train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]), num_classes=3
    )
    recipe = {
        "data": {"batch_size": 10},
        "split": {"blocks": 3},
        "method": {"name": "greedy"},
        "train": {"epochs": 2},
    }
    before = {name: p.clone() for name, p in model.named_parameters()}
    ppll.Trainer(recipe, model=model, data=data, out=tmp_path / "run").fit()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    loaded = ppll.load(tmp_path / "run", model=Plain())
    assert torch.equal(loaded(inputs), model.eval()(inputs))


class CausalLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, **given: Any) -> Any:
        cos, sin = given["position_embeddings"]
        steps = torch.arange(1, 1 + hidden_states.shape[1]).unsqueeze(1)
        mean = hidden_states.cumsum(1) / steps
        mask = given.get("attention_mask")
        mean = mean if mask is None else mean * mask
        return (hidden_states + self.linear(mean * cos + sin), None)


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("speed", torch.rand(8), persistent=False)

    def forward(self, features: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.unsqueeze(-1) * self.speed
        return angles.cos(), angles.sin()


class CausalBody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 8)
        self.h = nn.ModuleList([CausalLayer() for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.rotary = Rotary()
        self.mask: Tensor | None = None

    def forward(self, tokens: Tensor, use_cache: bool = True) -> Any:
        positions = torch.arange(tokens.shape[1]).unsqueeze(0)
        features = self.wte(tokens) * 2.0
        given = self.rotary(features, position_ids=positions)
        for layer in self.h:
            features, _ = layer(
                features,
                position_ids=positions,
                position_embeddings=given,
                attention_mask=self.mask,
                use_cache=use_cache,
            )
        return (self.norm(features),)


class CausalModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=True)
        self.transformer = CausalBody()
        self.lm_head = nn.Linear(8, 7, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, tokens: Tensor, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=self.lm_head(self.transformer(tokens, use_cache)[0]))


def test_a_language_model_makes_positions_inside_of_its_cuts() -> None:
    model = CausalModel()
    network = ppll.split(model, TOKENS)
    names = [layer.name for layer in network.layers]
    assert names == ["stem", "transformer_h_0", "transformer_h_1", "transformer_h_2", "head"]
    assert network.state_dict().keys() == model.state_dict().keys()
    # Another length and batch than those of the sample.
    tokens = sample_of((3,), 7)[:1]
    features = tokens
    for layer in network.layers:
        features = layer.module(features)
    assert torch.equal(features, model(tokens).logits)


def test_tied_embeddings_are_untied_in_the_model_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = CausalModel()
    with caplog.at_level(logging.WARNING):
        network = ppll.split(model, TOKENS)
    assert "lm_head.weight of the CausalModel is tied to transformer.wte.weight" in caplog.text
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    assert not model.config.tie_word_embeddings
    assert network.named_tensors()["lm_head.weight"] is model.lm_head.weight


def test_tied_embeddings_are_refused_where_they_are_to_stay() -> None:
    model = CausalModel()
    refused(model, r"is tied to transformer\.wte\.weight.* split\.untie", TOKENS, untie=False)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_mask_that_would_cross_every_cut_is_refused() -> None:
    model = CausalModel()
    model.transformer.mask = torch.ones(5, 1)
    refused(model, r"'transformer\.h\.0' is given 'attention_mask', a Tensor", TOKENS)


def test_layers_that_compute_something_else_are_refused() -> None:
    class Scaled(CausalModel):
        def forward(self, tokens: Tensor, use_cache: bool = True) -> Any:
            output = super().forward(tokens, use_cache)
            output.logits = output.logits / 2
            return output

    refused(Scaled(), "compute something else than its own forward", TOKENS)

"""Layers that hand on a tuple or a dict: what travels, what learns, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import ppll
from ppll import job
from ppll.blocks.graphs import RecordedBlock
from ppll.errors import ModelError, WorkerError
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.models import initialise
from ppll.slot_layouts import Layouts
from ppll.testing import Fault
from ppll.trained.exits import measure_exits
from tests.faults import injected
from tests.interleaving import MadeUpBatches, built_blocks, digest
from tests.libraries import library
from tests.structures import (
    MODELS,
    NUM_CLASSES,
    GatedModel,
    Masked,
    MaskedLayer,
    MaskedStem,
    blueprint_of,
    data,
    from_seed,
    made_up,
    masked_model,
    sections,
    train_interleaved,
)
from tests.test_block import Own
from tests.thinning import slow_but

every_model = pytest.mark.parametrize("name", slow_but(["dict"], MODELS))


def message(kind: Kind = Kind.TRAIN) -> Message:
    tensors = dict(MadeUpBatches().train_batch(0, 0))
    return Message(kind=kind, sequence=0, step=1, tensors=tensors)


# Any placement, the same bits


@every_model
@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "dgl"}},
        {"method": {"name": "sgr"}},
        {"method": {"name": "contsup", "context": "R1E"}},
        {"method": {"name": "infopro"}},
        {"method": {"name": "predsim"}},
        {"split": {"features_dtype": "int8"}},
        {"split": {"features_dtype": "bf16"}, "method": {"name": "contsup", "context": "R1"}},
        {"train": {"precision": "bf16", "accumulate": 2}},
        {"train": {"channels_last": True, "ema": 0.9}},
        {"train": {"activation_checkpointing": True}},
        {"train": {"on_nonfinite": "skip"}, "optimizer": {"name": "sgd", "momentum": 0.9}},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for c in changes.values() for k, v in c.items()),
)
def test_any_placement_ends_with_the_same_bits(name: str, changes: dict[str, Any]) -> None:
    blueprint = blueprint_of(MODELS[name](), **changes)
    expected = digest(train_interleaved(blueprint, 1))
    for num_stages in (2, 4):
        order = Random(num_stages)
        assert digest(train_interleaved(blueprint, num_stages, order.randrange)) == expected


@every_model
def test_to_compute_activations_again_changes_no_bit(name: str) -> None:
    found = [
        digest(train_interleaved(blueprint_of(MODELS[name](), train=train), 2))
        for train in ({}, {"activation_checkpointing": True})
    ]
    assert found[0] == found[1]


@every_model
def test_backpropagation_trains_the_same_network(name: str) -> None:
    """End to end nothing is cut, with or without exits at the recipe's cuts."""
    inputs, targets = made_up(6, 3)
    model = from_seed(name).eval()
    for method in ({}, {"exits": "linear", "context": "R1E"}):
        blueprint = blueprint_of(model, method={"name": "backprop", **method})
        (block,) = built_blocks(blueprint)
        block.modules.load({**dict(block.modules.named_tensors()), **model.state_dict()})
        tensors = {FEATURES: inputs, TARGETS: targets, "image": inputs}
        sent = block.forward(Message(kind=Kind.EVALUATE, sequence=0, step=0, tensors=tensors))
        if not method:
            assert torch.equal(sent.features, model(inputs).detach())
        block.evaluate()
        block.forward(replace(message(), tensors=tensors))
        block.learn()
        assert all(p.grad is not None for _, p in block.modules.named_parameters())


# What travels


def test_fields_travel_as_far_as_they_are_read() -> None:
    class Last(nn.Module):
        def forward(self, given: Masked) -> Tensor:
            return given.features * given.mask

    layers = [MaskedStem(), MaskedLayer(), Last(), nn.Conv2d(6, 6, 1), nn.Flatten()]
    layers.append(nn.Linear(6 * 64, NUM_CLASSES))
    blueprint = blueprint_of(layers, split={"blocks": 4, "cuts": [1, 3, 4]})
    sent = message()
    found = []
    for block in built_blocks(blueprint):
        sent = block.forward(sent)
        found.append({n: t.dtype for n, t in sent.tensors.items() if n.startswith("beside")})
    assert found == [{"beside.0": torch.bool}, {}, {}, {}]


@every_model
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_slots_are_as_large_as_what_comes(name: str, dtype: str | None) -> None:
    split = {} if dtype is None else {"features_dtype": dtype}
    trainer = ppll.Trainer(
        sections(data={"batch_size": 12}, split=split), model=from_seed(name), data=data()
    )
    layouts = Layouts(trainer._job(None), trainer.blueprint)  # type: ignore[arg-type]
    inputs, targets = made_up(12, 3)
    tensors = {FEATURES: inputs, TARGETS: targets}
    sent = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors)
    for block in built_blocks(trainer.blueprint)[:-1]:
        sent = block.forward(sent)
        expected = {name: tensor.nbytes for name, tensor in sent.tensors.items()}
        assert layouts.features(block.index + 1).field_bytes == expected


@every_model
def test_no_tensor_that_leaves_has_a_history(name: str) -> None:
    first = built_blocks(blueprint_of(MODELS[name]()))[0]
    sent = first.forward(message())
    assert not any(tensor.requires_grad for tensor in sent.tensors.values())


def test_what_is_beside_the_features_keeps_its_values_in_fewer_bytes() -> None:
    blocks = [
        built_blocks(blueprint_of(MODELS["dict"](), split=split))[0]
        for split in ({}, {"features_dtype": "bf16"})
    ]
    exact, lean = (block.forward(message()).tensors for block in blocks)
    assert lean[FEATURES].dtype is torch.bfloat16
    for name in ("beside.0", "beside.1", "beside.2"):
        assert torch.equal(exact[name], lean[name])


# What learns


class Both(nn.Module):
    """A tensor beside the features that has parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.beside = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(images.flatten(1)), self.beside(images.flatten(1))


class Add(nn.Module):
    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        return given[0] + given[1]


def test_what_makes_a_tensor_beside_the_features_learns_end_to_end_only() -> None:
    learned = {}
    for method in ("greedy", "backprop"):
        model = [Both(), Add(), nn.Linear(8, NUM_CLASSES)]
        split = {"blocks": 2, "cuts": [1]}
        blueprint = blueprint_of(model, split=split, method={"name": method})
        first = built_blocks(blueprint)[0]
        before = {n: p.clone() for n, p in first.modules.named_parameters()}
        first.forward(message())
        first.learn()
        after = dict(first.modules.named_parameters())
        learned[method] = {
            name: not torch.equal(after[f"0.{name}.weight"], before[f"0.{name}.weight"])
            for name in ("main", "beside")
        }
    assert learned["greedy"] == {"main": True, "beside": False}
    assert learned["backprop"] == {"main": True, "beside": True}


@every_model
def test_recorded_blocks_learn_as_others_do(name: str) -> None:
    class Again:
        def record(self, work: Any) -> Any:
            return work

    blueprint = blueprint_of(MODELS[name](), optimizer={"name": "sgd", "lr": 0.1, "fused": True})
    found = []
    for recorder in (None, Again()):
        device = torch.device("cpu")
        blocks = [blueprint.build_block(i, device, recorder) for i in range(4)]
        for block in blocks:
            assert isinstance(block, RecordedBlock) == (recorder is not None)
            for prefix, module in block.modules.named():
                initialise(module, prefix, 5)
        for step in range(1, 8):
            sent = replace(message(), step=step)
            for block in blocks:
                sent = block.forward(sent)
                block.learn()
        assert recorder is None or all(b.has_recorded(s) for b, s in [(blocks[0], message())])
        found.append(digest(blocks))
    assert found[0] == found[1]


# Whole runs


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / request.param
    ppll.Trainer(sections(), model=from_seed(request.param), data=data(), out=out).fit()
    return out


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


@pytest.mark.processes
@every_model
@pytest.mark.parametrize("num_stages", [2, 4])
def test_processes_end_with_the_bits_of_one(name: str, num_stages: int, tmp_path: Path) -> None:
    ends = {}
    for stages in (1, num_stages):
        recipe = sections(runtime={"stages": stages})
        trainer = ppll.Trainer(
            recipe, model=from_seed(name), data=data(), out=tmp_path / f"{stages}"
        )
        ends[stages] = trainer.fit()
    assert ends[1].weights_sha256 == ends[num_stages].weights_sha256
    assert ends[1].exit_accuracy == ends[num_stages].exit_accuracy


@pytest.mark.processes
def test_a_forward_that_is_cut_trains_on_any_number_of_stages(tmp_path: Path) -> None:
    hashes = []
    for stages in (1, 3):
        torch.manual_seed(0)
        model, out = GatedModel(), tmp_path / f"{stages}"
        recipe = sections(runtime={"stages": stages})
        hashes.append(ppll.Trainer(recipe, model=model, data=data(), out=out).fit().weights_sha256)
    assert hashes[0] == hashes[1]
    ppll.export(out, tmp_path / "model.safetensors")
    exported = GatedModel().eval()
    exported.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    inputs, _ = made_up(5, 7)
    with torch.no_grad():
        assert torch.equal(exported(inputs), ppll.load(out, model=GatedModel())(inputs))


@pytest.mark.slow
@pytest.mark.processes
@every_model
def test_replicas_share_every_batch(name: str, tmp_path: Path) -> None:
    recipe = sections(train={"replicas": 2}, runtime={"stages": 2})
    model = from_seed(name)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    ends = ppll.Trainer(recipe, model=model, data=data(), out=tmp_path / "run").fit()
    assert ends.step == 4
    again = sections(train={"replicas": 2})
    alone = ppll.Trainer(again, model=from_seed(name), data=data(), out=tmp_path / "one").fit()
    assert ends.weights_sha256 == alone.weights_sha256
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.processes
def test_a_run_on_one_stage_that_died_goes_on_with_four(run: Path, tmp_path: Path) -> None:
    for stages, fault in ((1, Fault(0, 3)), (4, None)):
        recipe = sections(runtime={"stages": stages})
        options = {"model": from_seed(run.name), "data": data(), "out": tmp_path / "run"}
        if fault is not None:
            with injected(fault), pytest.raises(WorkerError):
                ppll.Trainer(recipe, **options).fit()
        else:
            again = ppll.Trainer(recipe, resume=True, **options).fit()
    assert again.weights_sha256 == result(run)["weights_sha256"]


def test_a_model_holds_and_loads_what_is_exported(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    ppll.export(run, target)
    model = from_seed(run.name).eval()
    model.load_state_dict(safetensors.torch.load_file(target))
    inputs, _ = made_up(5, 7)
    loaded = ppll.load(run, model=from_seed(run.name))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))


def test_every_exit_of_a_loaded_network_is_that_of_training(run: Path) -> None:
    report = measure_exits(ppll.load(run, model=from_seed(run.name)), *made_up(12, 2))
    assert list(report.exit_accuracy) == result(run)["exit_accuracy"]


def test_a_model_of_a_library_is_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("timm")
    torch.manual_seed(0)
    monkeypatch.setattr(job, "build_of_library", lambda *_: GatedModel())
    shape = {"name": "synthetic", "shape": [1, 8, 8], "num_classes": 3, "num_train": 32}
    recipe = sections(data={**shape, "num_test": 8}, model={"name": "timm:resnet10t"})
    ends = ppll.Trainer(recipe, out=tmp_path / "run").fit()
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == ends.exit_accuracy


# What is refused


def refused(match: str, model: nn.Module | list[nn.Module], **changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=match):
        ppll.Trainer(sections(**changes), model=model, data=data())


def test_an_end_that_is_no_tensor_is_refused() -> None:
    model = [MaskedStem(), MaskedLayer()]
    refused(
        r"layer '1' \(MaskedLayer\) returns Masked\(mask=Tensor, features=Tensor\), but the last",
        model,
        split={"blocks": 2},
    )


@pytest.mark.parametrize(
    ("method", "layer", "key"),
    [
        (
            {"name": "man", "auxiliary": "linear"},
            r"layer '1' \(DictLayer\) reads {'tokens': Tensor, 'first': Tensor",
            "name",
        ),
        ({"name": "dgl", "auxiliary": "auglocal"}, r"layer '\d' \(DictLayer\) reads", "auxiliary"),
        ({"name": "solo", "depth": 1}, r"layer '\d' \(DictLayer\) reads", "name"),
        ({"name": "solo", "depth": 0}, r"layer '5' \(DictHead\) reads", "name"),
        (
            {"name": "zerolock", "auxiliary": "frozen-readout"},
            r"layer '5' \(DictHead\) reads",
            "auxiliary",
        ),
    ],
    ids=str,
)
def test_copies_of_such_layers_in_auxiliary_networks_are_refused(
    method: dict[str, Any], layer: str, key: str
) -> None:
    """With the key whose choice makes the copy."""
    words = rf"{layer}.* so no copy of it can stand .*: choose another method\.{key}\.$"
    refused(words, from_seed("dict"), method=method)


class Fickle(nn.Module):
    """Hands on something else in training than in the trial run."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 8)
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        features = self.linear(images.flatten(1))
        if not self.training:
            return (features, features) if self.kind != "tensor" else features
        return {
            "tensor": (features, features),
            "list": [features, features],
            "more": (features, features, features),
            "none": (features, None),
            "fewer": (features, features[:1]),
            "one": features,
        }[self.kind]


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, NUM_CLASSES)

    def forward(self, given: Any) -> Tensor:
        return self.linear(given if isinstance(given, Tensor) else given[0])


@pytest.mark.parametrize("kind", ["tensor", "list", "more", "none", "fewer", "one"])
def test_what_is_put_together_otherwise_in_training_is_named(kind: str, tmp_path: Path) -> None:
    trainer = ppll.Trainer(
        sections(split={"blocks": 2}),
        model=[Fickle(kind), First()],
        data=data(),
        out=tmp_path / "run",
    )
    expected = r"Tensor" if kind == "tensor" else r"\(Tensor, Tensor\)"
    with pytest.raises(
        WorkerError, match=rf"layer '0' \(Fickle\) returns .* now, but {expected} in the trial run"
    ):
        trainer.fit()


class InPlace(nn.Module):
    """Changes what is beside the features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 6, 1)
        self.flip = Flip()

    def forward(self, given: Masked) -> Tensor:
        return self.convolution(given.features) * self.flip(given.mask)


class Flip(nn.Module):
    def forward(self, mask: Tensor) -> Tensor:
        return mask.logical_not_()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_module_that_changes_what_is_beside_the_features_is_named(precision: str) -> None:
    layers = [MaskedStem(), InPlace(), nn.Flatten(), nn.Linear(6 * 64, NUM_CLASSES)]
    first, second = built_blocks(
        blueprint_of(layers, split={"blocks": 2, "cuts": [1]}, train={"precision": precision})
    )
    sent = first.forward(message())
    with pytest.raises(ModelError, match=r"changes the input of block 1 in place: Flip\(\)"):
        second.forward(sent)


def test_an_auxiliary_network_that_changes_features_of_another_shape_is_named() -> None:
    auxiliary = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(384, NUM_CLASSES))
    first = built_blocks(replace(blueprint_of(masked_model()), method=Own(auxiliary)))[0]
    first.forward(message())
    match = r"changes the output of block 0 in place: ReLU\(inplace=True\)"
    with pytest.raises(ModelError, match=match):
        first.learn()

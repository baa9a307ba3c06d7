"""What a run leaves to others: a plain file, a module with exits, weights to start from."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import ppll
from ppll.data import Dataset
from ppll.errors import ModelError, RecipeError, RunFolderError, UsageError, WorkerError
from ppll.models import Network, models
from ppll.sections import ModelConfig
from ppll.testing import Fault
from ppll.trained.weights import read_weights
from tests.faults import injected, recipe
from tests.test_resuming import OWN, own_data, own_model

OPTIONS = {
    "resnet": {"depth": 14, "width": 4},
    "vit": {"patch_size": 4, "width": 16, "depth": 4, "heads": 2},
}


@pytest.fixture(scope="module", params=["resnet", "vit"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp(request.param) / "run"
    tree = recipe().model_dump(exclude_unset=True)
    tree["model"] = {"name": request.param, **OPTIONS[request.param]}
    ppll.Trainer(tree, out=run).fit()
    return run


def unsplit(run: Path) -> nn.Module:
    model = ppll.load_recipe(run / "config.toml").model
    network = models.build(model.name, model.options, (1, 8, 8), 3)
    return network.as_module().eval()


def test_the_plain_network_gives_the_same_outputs(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    assert ppll.export(trained, target) == 12
    model = unsplit(trained)
    model.load_state_dict(safetensors.torch.load_file(target))
    network = ppll.load(trained)
    inputs = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(inputs), network(inputs))
        assert torch.equal(network(inputs), network.exits(inputs)[-1])


def test_the_file_says_what_it_is(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    ppll.export(trained, target)
    with safetensors.safe_open(target, framework="pt") as file:
        assert list(file.metadata()) == ["ppll"]
        about = json.loads(file.metadata()["ppll"])
    assert about["step"] == 12
    assert about["model"]["name"] in OPTIONS
    assert about["data"]["input_shape"] == [1, 8, 8]


def test_the_file_says_what_its_tensors_were_trained_as(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "model.safetensors"
    vit = recipe().model_copy(update={"model": ModelConfig(name="vit", **OPTIONS["vit"])})
    ppll.Trainer(vit.with_settings(["train.max_steps=1"]), out=run).fit()
    other = vit.with_settings(["model.heads=4"])  # Tensors of the same shapes.
    with injected(Fault(0, 2)), pytest.raises(WorkerError):
        ppll.Trainer(other, out=run, resume=True, allow_change=["model", "train"]).fit()
    assert ppll.load_recipe(run / "config.toml").model.options["heads"] == 4
    assert ppll.export(run, target) == 1
    with safetensors.safe_open(target, framework="pt") as file:
        assert json.loads(file.metadata()["ppll"])["model"]["heads"] == 2


def test_exits_are_as_accurate_as_training_said(trained: Path) -> None:
    network = ppll.load(trained)
    result = json.loads((trained / "result.json").read_text())
    test = ppll.evaluate(trained)
    assert list(test.exit_accuracy) == result["exit_accuracy"]
    assert len(network.exits(torch.randn(2, 1, 8, 8))) == 4
    assert not network.training


def test_bytes_are_normalised_as_in_training(tmp_path: Path) -> None:
    inputs = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    targets = (inputs.float().mean((1, 2, 3)) > 127).long()
    data = ppll.Dataset.from_arrays(train=(inputs, targets), test=(inputs, targets))
    run = tmp_path / "run"
    result = ppll.Trainer(recipe().with_settings(["data.validation=0"]), data=data, out=run).fit()
    network = ppll.load(run)
    with torch.no_grad():
        hits = network(inputs).argmax(1) == targets
    assert hits.float().mean().item() == pytest.approx(result.test_accuracy)


def test_bytes_are_refused_where_training_had_none(tmp_path: Path) -> None:
    ppll.Trainer(OWN, model=own_model(), data=own_data(), out=tmp_path / "run").fit()
    with pytest.raises(ModelError, match="trained on floating point, found uint8"):
        ppll.load(tmp_path / "run", model=own_model())(torch.zeros(1, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pt", "must end in .safetensors"),
        ("nowhere/model.safetensors", "there is no folder"),
        ("there.safetensors", "is there already"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    name: str, message: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(RunFolderError, match=message):
        ppll.export(trained, tmp_path / name)
    assert (tmp_path / "there.safetensors").stat().st_size == 0


def test_a_full_disk_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*model\.safetensors: No space left"):
        ppll.export(trained, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_one_s_own_is_exported_and_loaded(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "model.safetensors"
    model = own_model()
    ppll.Trainer(OWN, model=model, data=own_data(), out=run).fit()
    ppll.export(run, target)
    fresh = own_model()
    fresh.load_state_dict(safetensors.torch.load_file(target))
    inputs = torch.randn(5, 2, 3)
    with torch.no_grad():
        assert torch.equal(fresh(inputs), model(inputs))
        assert torch.equal(ppll.load(run, model=own_model())(inputs), model(inputs))
    with pytest.raises(ModelError, match="was given from Python"):
        ppll.load(run)
    with pytest.raises(ModelError, match="not the one that was trained"):
        ppll.load(run, model=nn.Sequential(nn.Flatten()))


class WithTable(nn.Module):
    """Holds a buffer that its state dict does not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", torch.full((6,), float("-inf")), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) + self.table.exp()


def test_buffers_that_do_not_persist_stay_out_of_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), WithTable(), nn.Linear(6, 2))
    run, target = tmp_path / "run", tmp_path / "model.safetensors"
    ppll.Trainer(OWN, model=model, data=own_data(), out=run).fit()
    ppll.export(run, target)
    assert set(safetensors.torch.load_file(target)) == set(model.state_dict())


class Tied(nn.Module):
    """Has a weight, and a whole module, under two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm = self.again = nn.BatchNorm1d(6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.norm(self.first(inputs)).tanh()))


def tied_model() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), Tied(), nn.Linear(6, 2))


def test_what_a_layer_shares_within_itself_stays_shared(tmp_path: Path) -> None:
    model, run, target = tied_model(), tmp_path / "run", tmp_path / "model.safetensors"
    start = model[1].first.weight.clone()
    ppll.Trainer(OWN, model=model, data=own_data(), out=run).fit()
    assert model[1].first.weight is model[1].second.weight
    assert not torch.equal(model[1].first.weight, start)
    ppll.export(run, target)
    fresh, inputs = tied_model().eval(), torch.randn(5, 2, 3)
    missing, unexpected = fresh.load_state_dict(safetensors.torch.load_file(target), strict=False)
    assert {name.split(".")[1] for name in missing} == {"second", "again"}
    assert unexpected == []
    with torch.no_grad():
        assert torch.equal(fresh(inputs), model.eval()(inputs))
        assert torch.equal(ppll.load(run, model=tied_model())(inputs), model(inputs))
    for source in (run, target):
        weights = read_weights(source, Network.from_modules(tied_model()))
        assert torch.equal(weights["1.first.weight"], model[1].first.weight)


def test_a_run_starts_from_a_run_or_a_file(trained: Path, tmp_path: Path) -> None:
    ppll.export(trained, tmp_path / "model.safetensors")
    base = ppll.load_recipe(trained / "config.toml")
    states = []
    for source in (trained, tmp_path / "model.safetensors"):
        # Too small a rate to change anything.
        settings = [f"model.weights={source}", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
        out = tmp_path / f"from-{source.name}"
        ppll.Trainer(base.with_settings([*settings, "train.max_steps=1"]), out=out).fit()
        states.append(dict(ppll.load(out).blocks.named_parameters()))
    expected = dict(ppll.load(trained).blocks.named_parameters())
    for state in states:
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def rows_of_tokens(length: int) -> Dataset:
    rows = torch.randint(9, (20, length + 1), generator=torch.Generator().manual_seed(length))
    part = (rows[:, :-1], rows[:, 1:])
    return Dataset.from_arrays(train=part, test=part, num_classes=9)


@pytest.mark.parametrize("is_exported", [False, True])
def test_longer_rows_begin_with_what_shorter_ones_have_learned(
    is_exported: bool, tmp_path: Path
) -> None:
    model = {"name": "gpt", "width": 8, "depth": 4, "heads": 2, "positions": "rotary"}
    tree: dict[str, Any] = {**OWN, "model": model, "method": {"name": "dgl"}}
    source = tmp_path / "run"
    ppll.Trainer(tree, data=rows_of_tokens(6), out=source).fit()
    expected = dict(ppll.load(source).named_parameters())
    if is_exported:
        source = tmp_path / "model.safetensors"
        ppll.export(tmp_path / "run", source)
    # Too small a rate to change anything.
    still = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "train": {"max_steps": 1}}
    tree = {**tree, **still, "model": {**model, "weights": str(source)}}
    ppll.Trainer(tree, data=rows_of_tokens(9), out=tmp_path / "longer").fit()
    found = dict(ppll.load(tmp_path / "longer").blocks.named_parameters(prefix="blocks"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


class Cut(nn.Module):
    """Is cut at its row; what stands before and behind has no layer of its own."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = inputs + self.shift
        for layer in self.layers:
            features = layer(features)
        return self.head(self.norm(features))


def test_the_message_names_what_does_not_fit_of_a_model_that_was_cut(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    safetensors.torch.save_file(Cut(3).state_dict(), source)
    network = ppll.split(Cut(2), torch.rand(2, 4))
    with pytest.raises(ModelError, match=r'anew with what does not fit: model\.fresh = \["head"\]'):
        read_weights(source, network)
    assert "head.weight" not in read_weights(source, network, ["head"])
    with pytest.raises(ModelError, match=r"Known: head, .*layers\.0.*, norm, shift"):
        read_weights(source, network, ["classifier"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.width=4", "has shape"),
        ("model.depth=20", "is missing"),
        ("model.depth=8", "belongs nowhere"),
    ],
)
def test_weights_of_another_network_are_refused(setting: str, message: str, tmp_path: Path) -> None:
    ppll.Trainer(recipe(), out=tmp_path / "run").fit()
    settings = [f"model.weights={tmp_path / 'run'}", setting, "split.blocks=2"]
    with pytest.raises(ModelError, match=message):
        ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_head_for_other_classes_begins_with_first_values(tmp_path: Path) -> None:
    ppll.Trainer(recipe(), out=tmp_path / "run").fit()
    start = [f"model.weights={tmp_path / 'run'}", "data.num_classes=7", "train.max_steps=1"]
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    other = recipe().with_settings([*start, *still])
    with pytest.raises(ModelError, match=r'anew with what does not fit: model\.fresh = \["head"\]'):
        ppll.Trainer(other, out=tmp_path / "other")
    ppll.Trainer(other.with_settings(['model.fresh=["head"]']), out=tmp_path / "other").fit()
    before, now = (
        dict(ppll.load(tmp_path / n).blocks.named_parameters()) for n in ("run", "other")
    )
    fitting = [name for name in before if now[name].shape == before[name].shape]
    assert len(fitting) == len(before) - 2
    assert all(torch.equal(before[name], now[name]) for name in fitting)


def test_an_unknown_layer_cannot_be_fresh(tmp_path: Path) -> None:
    ppll.Trainer(recipe(), out=tmp_path / "run").fit()
    settings = [f"model.weights={tmp_path / 'run'}", 'model.fresh=["haed"]']
    with pytest.raises(
        ModelError, match=r"unknown layer in model\.fresh 'haed'\. Did you .*'head'"
    ):
        ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "other")
    with pytest.raises(RecipeError, match=r"set model\.weights, too\.$"):
        recipe().with_settings(['model.fresh=["head"]'])


@pytest.mark.parametrize("name", ["model.pt", "nothing.safetensors", "noise.safetensors"])
def test_weights_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    settings = [f"model.weights={tmp_path / name}"]
    with pytest.raises(ModelError, match=name):
        ppll.Trainer(recipe().with_settings(settings), out=tmp_path / "run")

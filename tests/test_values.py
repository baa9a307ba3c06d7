"""Values to predict instead of classes: what is taken, what is refused, every method."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import ppll
from ppll.blocks.blueprint import build_method
from ppll.config import Recipe
from ppll.data import Dataset, Loader, Split, prepare
from ppll.data.preparation import facts_of
from ppll.data_facts import DataFacts
from ppll.errors import DataError, ModelError, RecipeError, WorkerError
from ppll.live import show_result
from ppll.message import FEATURES, TARGETS, Kind, Message
from ppll.methods import methods
from ppll.reports.report import write_report
from ppll.result import read_result
from ppll.run_folder import RunFolder
from ppll.testing import Fault, check_placements
from tests.faults import injected
from tests.interleaving import (
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    digest,
    small_recipe,
    train_interleaved,
)
from tests.thinning import KINDS_OF_METHODS, slow_but

LOCAL = [entry.name for entry in methods if not entry.build.end_to_end]
OF_CLASSES = ["predsim", "scpl", "zerolock"]
"""Methods that read targets or predictions as those of classes."""
WORKING = [name for name in LOCAL if name not in OF_CLASSES]
MSE = "torch.nn:MSELoss"
NUM_VALUES = 5


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


class MadeUpValues(MadeUpBatches):
    """The same images, with two values that can be told from each."""

    def __init__(self) -> None:
        super().__init__()
        for batch in self._batches:
            image = batch[FEATURES]
            batch[TARGETS] = torch.stack([image.mean((1, 2, 3)), image[:, 0, 0, 0]], dim=1)

    @property
    def facts(self) -> DataFacts:
        return dataclasses.replace(super().facts, num_classes=2, predicts_values=True)


def recipe(method: str = "dgl", *settings: str, **train: object) -> Recipe:
    base = small_recipe(method=method, optimizer="adamw", **train)
    own = {"lopt": ["method.weight=1"]}.get(method, [])
    return base.with_settings([f"loss.name={MSE}", *own, *settings])


def samples(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (N, 8) and values (N, 5) that are sums of them."""
    inputs = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, inputs.unfold(1, 4, 1).sum(2)


def dataset() -> Dataset:
    return Dataset.from_arrays(train=samples(48, seed=0), test=samples(20, seed=1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)]
    return nn.Sequential(*layers)


def tree(**sections: Any) -> dict[str, Any]:
    base: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 10, "validation": 8},
        "split": {"blocks": 2},
        "loss": {"name": MSE},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 2},
        "checkpoint": {"every_steps": 3},
    }
    return {**base, **{name: {**base.get(name, {}), **keys} for name, keys in sections.items()}}


def fit(out: Path, *, resume: bool = False, **sections: Any) -> ppll.Result:
    trainer = ppll.Trainer(
        tree(**sections), model=model(), data=dataset(), out=out, resume=resume, progress=False
    )
    return trainer.fit()


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (np.arange(6.0), (6, 1)),
        (torch.arange(6.0), (6, 1)),
        ([[0.5, 1.0]] * 6, (6, 2)),
        (np.ones((6, 3), dtype=np.float16), (6, 3)),
    ],
)
def test_targets_in_floating_point_are_values(values: Any, shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(6, 4)
    data = Dataset.from_arrays(train=(inputs, values), test=(inputs, values))
    assert data.train.targets.dtype == torch.float32
    assert data.train.targets.shape == shape
    assert data.num_classes == shape[1]
    assert data.train.predicts_values
    assert not data.train.predicts_tokens
    assert facts_of(prepare(data, Recipe.from_dict({"data": {"batch_size": 2}}).data)) == DataFacts(
        (4,), shape[1], 3, predicts_values=True, num_test=6
    )


def test_data_sets_of_torch_may_have_values() -> None:
    train, test = (TensorDataset(*samples(10, seed)) for seed in (0, 1))
    data = Dataset.from_torch(train=train, test=test)
    assert data.equals(Dataset.from_arrays(train=train.tensors, test=test.tensors))
    alone = Dataset.from_torch(
        train=[(np.zeros(3), 0.5)] * 4,  # type: ignore[arg-type]
        test=[(np.zeros(3), 0.5)] * 4,  # type: ignore[arg-type]
    )
    assert alone.train.targets.tolist() == [[0.5]] * 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            torch.zeros(4, 2),
            torch.zeros(4, 3),
            r"test samples have 3 value\(s\) each to predict, not 2 as those of train or num_cl",
        ),
        (
            torch.zeros(4, 2),
            [0, 1, 0, 1],
            r"classes, found targets float32 of shape \(4, 2\) and int64 of shape \(4,\): give",
        ),
        (
            torch.zeros(4, 2).long(),
            torch.zeros(4, 2),
            r"^train: targets must be .*targets\.float\(",
        ),
        (
            torch.zeros(4, 2).bool(),
            torch.zeros(4, 2),
            r"^train: targets must be .*targets\.float\(",
        ),
        (torch.zeros(4).bool(), torch.zeros(4), r"targets\.long\(\) of true and false"),
        ([0, -3, 1, 2], [0, 1, 2, 0], r"label -3 .* give values to predict in floating point"),
        (torch.zeros(4, 2, 2), torch.zeros(4, 2, 2), r"found float32 of shape \(4, 2, 2\)"),
        (torch.zeros(3, 2), torch.zeros(4, 2), "4 inputs but 3 targets: give one row of values a"),
        (
            torch.tensor([0, math.inf, 0, 0]),
            torch.zeros(4),
            "the target of sample 1 holds a value that is not",
        ),
        (torch.zeros(4, requires_grad=True), torch.zeros(4), "targets require a gradient, but dat"),
        (torch.zeros(4, 0), torch.zeros(4, 0), r"found float32 of shape \(4, 0\)"),
    ],
)
def test_values_that_do_not_fit_are_refused(train: Any, test: Any, message: str) -> None:
    inputs = torch.zeros(4, 3)
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(train=(inputs, train), test=(inputs, test))


def test_another_number_of_values_than_is_named_is_refused() -> None:
    with pytest.raises(DataError, match="leave num_classes out"):
        Dataset.from_arrays(train=samples(4, 0), test=samples(4, 1), num_classes=3)
    with pytest.raises(DataError, match="must be a number of classes, found 0"):
        Dataset.from_arrays(train=samples(4, 0), test=samples(4, 1), num_classes=0)


def test_a_file_holds_values(tmp_path: Path) -> None:
    dataset().save(tmp_path / "data.safetensors")
    assert Dataset.load(tmp_path / "data.safetensors").equals(dataset())


def test_batches_hold_values_as_they_are() -> None:
    data = prepare(dataset(), Recipe.from_dict(tree()).data)
    loader = Loader(data, seed=3)
    batch = loader.train_batch(0, 0)
    sums = batch[FEATURES].unfold(1, 4, 1).sum(2)
    assert torch.equal(batch[TARGETS], sums)
    (tested, _) = loader.evaluation_batches("test")
    assert torch.equal(tested[TARGETS], dataset().test.targets[:10])


# --- learning ------------------------------------------------------------------------------------


def losses_of(blocks: Iterable[Any]) -> list[float]:
    message = Message(
        kind=Kind.EVALUATE, sequence=0, step=1, tensors=MadeUpValues().train_batch(0, 0)
    )
    found = []
    for block in blocks:
        message = block.forward(message)
        block.evaluate()
        tally = block.counts.take()
        assert tally.samples == 6
        assert math.isnan(tally.accuracy)
        found.append(tally.loss)
    return found


@pytest.mark.parametrize("method", slow_but(["backprop", "dgl"], [*WORKING, "backprop"]))
def test_every_exit_learns(method: str) -> None:
    before = losses_of(built_blocks(blueprint_of(recipe(method), MadeUpValues())))
    trained = train_interleaved(
        recipe(method, "optimizer.lr=0.02", epochs=12, evaluate_every=0), 1, batches=MadeUpValues()
    )
    after = losses_of(trained)
    exits = [pair for pair in zip(before, after, strict=True) if not math.isnan(pair[1])]
    assert len(exits) == (1 if method == "lopt" else len(trained))
    assert all(late < 0.7 * early for early, late in exits)


@pytest.mark.parametrize("method", slow_but(KINDS_OF_METHODS, WORKING))
def test_any_placement_gives_the_same_bits(method: str) -> None:
    digests = {
        digest(train_interleaved(recipe(method), stages, batches=MadeUpValues()))
        for stages in (1, 4)
    }
    assert len(digests) == 1


def test_a_batch_in_parts_gives_the_same_bits_on_any_placement() -> None:
    base = recipe("dgl", "train.accumulate=2")
    digests = {digest(train_interleaved(base, n, batches=MadeUpValues())) for n in (1, 2, 4)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss.name=cross-entropy"], "is of classes, but the data has values .* 'torch.nn:MSELos"),
        *(([f"method.name={name}"], f"method '{name}' reads targets or") for name in OF_CLASSES),
        (["method.name=infopro", "method.objective=contrast"], "method 'infopro' reads targets or"),
        (["method.name=contsup", "method.objective=contrast"], "method 'contsup' reads targets or"),
        (["method.name=backprop", "method.exits=linear"], "method 'backprop' reads targets or"),
    ],
)
def test_what_reads_classes_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        blueprint_of(recipe().with_settings(settings), MadeUpValues())


def test_methods_that_read_classes_say_so() -> None:
    named = [
        n for n in LOCAL if build_method(Recipe.from_dict({"method": {"name": n}})).needs_classes
    ]
    assert named == OF_CLASSES


def test_a_network_of_another_length_is_refused() -> None:
    narrow = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ModelError, match=r"has 5 value\(s\) to predict of each: it must be \(5,\)"):
        ppll.Trainer(tree(), model=narrow, data=dataset())


def test_classes_in_the_wrong_type_are_pointed_out() -> None:
    inputs, classes = samples(6, seed=0)[0], torch.tensor([0, 1, 1, 0, 1, 0])
    for targets, length, hint in (
        (classes.float(), 2, "floating point; those of classes are whole numbers"),
        (classes, 1, "whole numbers; values to predict are floating point"),
    ):
        network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, length))
        data = Dataset.from_arrays(train=(inputs, targets), test=(inputs, targets))
        with pytest.raises(ModelError, match=f"Its targets are {hint}"):
            ppll.Trainer(tree(data={"validation": 0, "batch_size": 3}), model=network, data=data)


def test_cross_entropy_of_one_value_learns_nothing_and_is_refused() -> None:
    inputs, targets = samples(6, seed=0)[0], torch.tensor([0.0, 1, 1, 0, 1, 0])
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    data = Dataset.from_arrays(train=(inputs, targets), test=(inputs, targets))
    given = tree(
        data={"validation": 0, "batch_size": 3}, loss={"name": "torch.nn:CrossEntropyLoss"}
    )
    with pytest.raises(RecipeError, match="returned the same number whatever was predicted"):
        ppll.Trainer(given, model=network, data=data)


def test_only_of_rows_of_tokens_a_network_is_said_to_read_tokens() -> None:
    wide = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with pytest.raises(ModelError) as caught:
        ppll.Trainer(tree(), model=wide, data=dataset())
    assert "token" not in str(caught.value)
    rows = torch.zeros(8, 6, dtype=torch.int64)
    data = Dataset.from_arrays(train=(rows, torch.zeros(8, 3)), test=(rows, torch.zeros(8, 3)))
    gpt = {"name": "gpt", "width": 8, "depth": 2, "heads": 2}
    with pytest.raises(ModelError, match=r"of every token.* but the data has one target a row"):
        ppll.Trainer(tree(model=gpt, data={"batch_size": 4, "validation": 0}), data=data)


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ppll.Result:
    return fit(tmp_path_factory.mktemp("whole") / "run")


def test_a_run_says_how_large_losses_are(whole: ppll.Result) -> None:
    assert whole.test_accuracy is None
    assert whole.validation_accuracy is None
    assert whole.exit_accuracy == (None, None)
    assert whole.test_loss == whole.exit_loss[-1]
    assert whole.validation_loss is not None
    inputs, values = samples(20, seed=1)
    network = ppll.load(whole.run_folder, model=model())
    with torch.no_grad():
        exits = network.exits(inputs)
    found = [float(nn.functional.mse_loss(e, values)) for e in exits if e is not None]
    assert found == pytest.approx(list(whole.exit_loss), rel=1e-5)
    lines = (Path(whole.run_folder) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["accuracy"] for row in rows} == {None}
    assert {row["samples"] for row in rows if row["kind"] == "test"} == {20}


def test_what_is_shown_is_the_loss(whole: ppll.Result, tmp_path: Path) -> None:
    text = io.StringIO()
    show_result(Console(file=text, width=120), whole)
    shown = text.getvalue()
    assert f"test loss, final output: {whole.test_loss:.4f}" in shown
    assert f"validation loss: {whole.validation_loss:.4f}" in shown
    assert "accuracy" not in shown
    run = Path(whole.run_folder)
    write_report([run], tmp_path / "one.html")
    page = (tmp_path / "one.html").read_text()
    assert "test loss" in page
    assert f"{whole.test_loss:.5g}" in page
    write_report([run, run], tmp_path / "two.html")
    table = (tmp_path / "two.html").read_text().split("What differs")[0]
    assert "test loss" in table
    assert "accuracy" not in table
    assert table.count(f"{whole.test_loss:.4f}") == 2
    both = (tmp_path / "two.html").read_text().partition("Side by side")[2].partition("<h2")[0]
    assert "test loss" in both
    assert both.count(f"{whole.test_loss:.5g}") == 2
    assert "loss of the final output, by step" in both
    assert "accuracy" not in both


def test_losses_of_any_size_are_reported(whole: ppll.Result, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.run_folder, run)
    written = json.loads((run / "result.json").read_text())
    for loss, words in ((9e23, "9e+23"), (None, "not finite")):
        changed = {**written, "test_loss": loss, "exit_loss": [None, loss]}
        (run / "result.json").write_text(json.dumps(changed))
        write_report([run], tmp_path / "page.html")
        assert words in (tmp_path / "page.html").read_text()
    text = io.StringIO()
    show_result(Console(file=text, width=120), read_result(RunFolder(run)))
    assert "test loss, final output: not finite" in text.getvalue()


def test_results_of_before_are_still_shown(whole: ppll.Result, tmp_path: Path) -> None:
    written = json.loads((Path(whole.run_folder) / "result.json").read_text())
    older = {k: v for k, v in written.items() if not k.endswith("_loss")}
    folder = RunFolder(tmp_path)
    folder.result.write_text(json.dumps({**older, "exit_accuracy": [None, 0.5]}))
    text = io.StringIO()
    show_result(Console(file=text, width=120), read_result(folder))
    assert "exit of block 0: no prediction" in text.getvalue()
    assert "final output: 50.00%" in text.getvalue()


def test_it_is_evaluated_alike(whole: ppll.Result) -> None:
    assert ppll.evaluate(whole.run_folder, model=model()).exit_loss == whole.exit_loss


def test_exits_are_not_compared_by_classes(whole: ppll.Result) -> None:
    with pytest.raises(DataError, match="but here are values to predict"):
        ppll.evaluate_exits(whole.run_folder, model=model())


def test_a_run_goes_on_to_the_same_bits(whole: ppll.Result, tmp_path: Path) -> None:
    with injected(Fault(0, 5)), pytest.raises(WorkerError):
        fit(tmp_path / "run")
    result = fit(tmp_path / "run", resume=True)
    assert result.weights_sha256 == whole.weights_sha256
    assert result.exit_loss == whole.exit_loss
    again = fit(tmp_path / "run", resume=True)
    assert again.exit_loss == whole.exit_loss


def test_classes_are_other_data(whole: ppll.Result, tmp_path: Path) -> None:
    with injected(Fault(0, 5)), pytest.raises(WorkerError):
        fit(tmp_path / "run")
    inputs, values = samples(48, seed=0)
    classes = values.argmax(1)
    data = Dataset(Split(inputs, classes), Split(inputs, classes), 5)
    trainer = ppll.Trainer(
        tree(loss={"name": "cross-entropy"}),
        model=model(),
        data=data,
        out=tmp_path / "run",
        resume=True,
        allow_change=["loss"],
    )
    with pytest.raises(DataError, match="trained on other data than is given now"):
        trainer.fit()


@pytest.mark.slow
def test_several_labels_are_values_too(tmp_path: Path) -> None:
    inputs, values = samples(48, seed=0)
    labels = (values > 0).float()
    data = Dataset.from_arrays(train=(inputs, labels), test=(inputs, labels))
    loss = {"name": "torch.nn:BCEWithLogitsLoss", "options": {"pos_weight": [2.0] * 5}}
    result = ppll.Trainer(
        tree(loss=loss, train={"epochs": 60}), model=model(), data=data, out=tmp_path / "run"
    ).fit()
    with torch.no_grad():
        logits = ppll.load(result.run_folder, model=model())(inputs)
    assert ((logits > 0) == (labels > 0)).float().mean() > 0.9


def validation_losses(run: Path) -> dict[int, float]:
    """Of the final output, by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in rows if r["kind"] == "validation" and r["block"] == 1}


BEST = {
    "checkpoint": {"keep": "best", "every_steps": 3},
    # So fast that it gets worse again.
    "optimizer": {"name": "adamw", "lr": 0.12},
    "schedule": {"name": "constant"},
    "train": {"epochs": 8, "seed": 4},
}


def test_the_checkpoint_with_the_least_loss_is_kept(tmp_path: Path) -> None:
    result = fit(tmp_path / "run", **BEST)
    losses = validation_losses(tmp_path / "run")
    best = min(losses, key=lambda step: losses[step])
    assert result.best_step == best
    assert result.best_validation_loss == losses[best]
    assert result.best_validation_accuracy is None
    tested = ppll.evaluate(tmp_path / "run", model=model(), best=True)
    assert (tested.step, tested.validation_loss) == (best, losses[best])
    text = io.StringIO()
    show_result(Console(file=text, width=120), result)
    assert f"best validation loss: {losses[best]:.4f} (step {best})" in text.getvalue()


def test_losses_of_another_kind_are_not_compared(tmp_path: Path) -> None:
    fit(tmp_path / "run", **BEST)
    longer = {**BEST, "train": {"epochs": 9, "seed": 4}, "loss": {"name": "torch.nn:L1Loss"}}
    trainer = ppll.Trainer(
        tree(**longer),
        model=model(),
        data=dataset(),
        out=tmp_path / "run",
        resume=True,
        allow_change=["loss"],
    )
    result = trainer.fit()
    assert result.best_step == max(validation_losses(tmp_path / "run"))


@pytest.mark.processes
def test_processes_end_with_the_bits_of_one() -> None:
    check_placements(Recipe.from_dict(tree()), model=model(), data=dataset(), stages=(1, 2))


@pytest.mark.processes
def test_replicas_share_every_batch(tmp_path: Path) -> None:
    plain = {"method": {"auxiliary": "linear"}, "data": {"drop_last": True}}
    two = fit(tmp_path / "two", train={"epochs": 1, "replicas": 2}, **plain)
    assert two.test_loss is not None
    one = fit(tmp_path / "one", train={"epochs": 1}, **plain)
    assert two.test_loss == pytest.approx(one.test_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.processes
def test_shares_change_no_bit(tmp_path: Path) -> None:
    found = [
        fit(
            tmp_path / sharding,
            train={"epochs": 1, "replicas": 2, "ema": 0.9, "accumulate": 2},
            data={"drop_last": True},
            runtime={"stages": 2, "sharding": sharding},
        )
        for sharding in ("none", "fsdp")
    ]
    assert found[0].weights_sha256 == found[1].weights_sha256
    assert found[0].exit_loss == found[1].exit_loss

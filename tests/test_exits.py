"""Early exits: numbers by hand, a slow reference, and agreement with what training said."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.modules import BlockModules
from ppll.data_facts import DataFacts
from ppll.errors import DataError, ModelError, UsageError
from ppll.methods import methods
from ppll.models.network import Layer
from ppll.trained.exits import measure_exits
from ppll.trained.inference import BlockCompute, TrainedNetwork
from tests.faults import recipe
from tests.test_cli import run_here
from tests.test_resuming import OWN, own_data, own_model

VIT = {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2}
BF16 = ["train.precision=bf16", "runtime.stages=2"]


class Told:
    """A network whose exits say what it is told, whatever the sample; None is a silent block."""

    step = 7

    def __init__(
        self, probabilities: Sequence[list[list[float]] | None], compute: list[tuple[int, int]]
    ) -> None:
        self.logits = [p if p is None else torch.tensor(p).log() for p in probabilities]
        num_classes = next(p.shape[1] for p in self.logits if p is not None)
        self.facts = DataFacts((1,), num_classes, 1)
        self.compute = [BlockCompute(*pair) for pair in compute]

    def exits(self, inputs: Tensor) -> list[Tensor | None]:
        rows = inputs[:, 0].long()
        return [p if p is None else p[rows] for p in self.logits]

    def multiply_adds(self, inputs: Tensor) -> list[BlockCompute]:
        assert inputs.shape == (1, 1)
        return self.compute


FIRST = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]]
LAST = [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]
TARGETS = torch.tensor([0, 1, 1, 1])
SAMPLES = torch.arange(4.0)[:, None]
SILENT = Told([FIRST, None, LAST], [(10, 6), (20, 0), (30, 0)])


def test_probabilities_are_compared_in_double_precision() -> None:
    told = Told([[[0.5, 0.5]], [[0.5, 0.5]]], [(1, 1), (1, 0)])
    told.logits = [torch.tensor([[0.0, 1e-9]])] * 2
    report = measure_exits(told, SAMPLES[:1], torch.tensor([1]), thresholds=[0.5])
    assert report.average_accuracy == 1.0


def test_numbers_by_hand() -> None:
    report = measure_exits(SILENT, SAMPLES, TARGETS, thresholds=[0.65], batch_size=3)
    assert (report.step, report.num_samples) == (7, 4)
    assert report.exit_accuracy == (0.5, None, 0.75)
    losses = (
        [-math.log(p) for p in (0.9, 0.4, 0.7, 0.5)],
        [-math.log(p) for p in (0.8, 0.9, 0.4, 0.8)],
    )
    assert report.exit_loss == (
        pytest.approx(sum(losses[0]) / 4, rel=1e-6),
        None,
        pytest.approx(sum(losses[1]) / 4, rel=1e-6),
    )
    assert report.average_accuracy == 1.0
    mean = [0.85, 0.65, 0.55, 0.65]
    assert report.average_loss == pytest.approx(-sum(map(math.log, mean)) / 4, rel=1e-6)
    (trade,) = report.trades
    assert trade.exit_share == (0.5, 0.0, 0.5)
    assert (trade.accuracy, trade.mean_blocks) == (1.0, 2.0)
    # Two leave after the first block and its exit, two have asked it in vain.
    assert trade.compute_share == pytest.approx((2 * 16 + 2 * 66) / (4 * 60))


def test_a_threshold_that_is_reached_exactly_is_enough() -> None:
    told = Told([[[0.25, 0.75]], [[1.0, 0.0]]], [(1, 0), (1, 0)])
    told.logits[0] = torch.zeros(1, 4)  # a probability of exactly one quarter
    told.logits[1] = torch.zeros(1, 4)
    told.facts = DataFacts((1,), 4, 1)
    report = measure_exits(told, SAMPLES[:1], TARGETS[:1], thresholds=[0.25, 0.2500001])
    assert [trade.exit_share for trade in report.trades] == [(1.0, 0.0), (0.0, 1.0)]


def test_what_is_not_finite_leaves_last_and_has_no_loss() -> None:
    told = Told([FIRST, LAST], [(1, 1), (1, 0)])
    told.logits[0][2] = math.nan
    report = measure_exits(told, SAMPLES, TARGETS, thresholds=[1e-9])
    assert report.trades[0].exit_share == (0.75, 0.25)
    assert report.exit_loss[0] is None
    assert report.average_loss is None
    assert report.exit_loss[1] is not None
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_network_without_products_has_no_share_of_compute() -> None:
    report = measure_exits(Told([LAST], [(0, 0)]), SAMPLES, TARGETS, thresholds=[0.5])
    assert report.trades[0].compute_share is None


def linear_network() -> TrainedNetwork:
    """Three blocks on vectors of length 2, with linear exits to three classes."""
    blocks = [
        BlockModules((Layer("a", nn.Linear(2, 5)),), nn.Linear(5, 3)),
        BlockModules((Layer("b", nn.Linear(5, 4)), Layer("c", nn.Tanh())), nn.Linear(4, 3)),
        BlockModules((Layer("d", nn.Linear(4, 3)),), None),
    ]
    return TrainedNetwork(blocks, methods.build("dgl", {}), DataFacts((2,), 3, 1), 5)


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(powers) for x in powers]


def slow_reference(
    exits: list[list[list[float]]], targets: list[int], threshold: float
) -> dict[str, Any]:
    """Sample after sample, from logits by exit and sample."""
    right = depth = cost = average_right = 0.0
    leave = [0] * len(exits)
    cost_of = [10 + 15, 10 + 15 + 20 + 12, 10 + 15 + 20 + 12 + 12]
    for sample, target in enumerate(targets):
        probabilities = [softmax(one[sample]) for one in exits]
        for index, row in enumerate(probabilities):
            if max(row) >= threshold or index == len(exits) - 1:
                right += row.index(max(row)) == target
                depth += index + 1
                cost += cost_of[index]
                leave[index] += 1
                break
        sums = [sum(column) for column in zip(*probabilities, strict=True)]
        average_right += sums.index(max(sums)) == target
    num = len(targets)
    return {
        "accuracy": right / num,
        "mean_blocks": depth / num,
        "compute_share": cost / num / (10 + 20 + 12),
        "exit_share": tuple(count / num for count in leave),
        "average_accuracy": average_right / num,
    }


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_sample_after_sample_says_the_same(batch_size: int) -> None:
    network = linear_network()
    inputs, targets = 3 * torch.randn(101, 2), torch.randint(3, (101,))
    thresholds = [1e-9, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    with torch.no_grad():
        exits = [logits.double().tolist() for logits in network.exits(inputs)]
    report = measure_exits(network, inputs, targets, thresholds=thresholds, batch_size=batch_size)
    for threshold, trade in zip(thresholds, report.trades, strict=True):
        expected = slow_reference(exits, targets.tolist(), threshold)
        assert report.average_accuracy == expected.pop("average_accuracy")
        for name, value in expected.items():
            assert getattr(trade, name) == pytest.approx(value, rel=1e-12), (threshold, name)
    assert len({trade.exit_share for trade in report.trades}) > 4  # they differ
    assert report.trades[0].accuracy == report.exit_accuracy[0]
    assert report.trades[0].mean_blocks == 1
    assert report.trades[-1].accuracy == report.exit_accuracy[-1]
    assert report.trades[-1].mean_blocks == 3


def test_the_task_loss_is_the_caller_s() -> None:
    report = measure_exits(
        SILENT, SAMPLES, TARGETS, task_loss=lambda logits, targets: logits.sum() * 0 + 2.5
    )
    assert report.exit_loss == (2.5, None, 2.5)
    assert report.average_loss == 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": [0.5, 0.0]}, "above 0 and at most 1, found 0"),
        ({"thresholds": [1.01]}, "found 1.01"),
        ({"thresholds": [math.nan]}, "found nan"),
        ({"thresholds": 0.9}, r"a row of numbers, found 0\.9: give a list"),
        ({"inputs": SAMPLES.numpy()}, r"tensors of torch, found ndarray: give torch\.as_tensor"),
        ({"targets": TARGETS.tolist()}, "tensors of torch, found list"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
        ({"targets": TARGETS[:2]}, "4 inputs but 2 targets"),
        ({"targets": TARGETS + 1}, r"go from 1 to 2, but .* 2 classes"),
        ({"targets": TARGETS - 1}, r"go from -1 to 0"),
        ({"inputs": torch.zeros(4, 3)}, r"shape \(3,\), but the network was trained on \(1,\)"),
        ({"inputs": torch.zeros(0, 1), "targets": TARGETS[:0]}, "empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"inputs": SAMPLES, "targets": TARGETS} | change
    with pytest.raises((UsageError, DataError), match=message):
        measure_exits(SILENT, **arguments)


def trained(out: Path, *settings: str, model: dict[str, Any] | None = None) -> Path:
    tree = recipe().with_settings(["train.epochs=1", *settings]).model_dump(exclude_unset=True)
    ppll.Trainer({**tree, **({"model": model} if model else {})}, out=out).fit()
    return out


def said_by_training(run: Path) -> tuple[list[float | None], list[float | None]]:
    """Accuracy of every exit on the test set after the last step, and its loss."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    last = [row for row in rows if row["kind"] == "test" and row["step"] == result["step"]]
    return result["exit_accuracy"], [row["loss"] for row in last]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (None, ["method.name=dgl", "data.eval_batch_size=7"]),
        pytest.param(
            None,
            ["method.name=dgl", "train.threads_per_stage=2", "train.max_steps=2"],
            marks=pytest.mark.slow,
        ),
        (None, ["method.name=dgl", "train.accumulate=3", "train.label_smoothing=0.1"]),
        (None, ["method.name=contsup", "method.context=R1E"]),
        *(
            pytest.param(None, settings, marks=pytest.mark.slow)
            for settings in (
                ["method.name=infopro", "method.objective=contrast"],
                ["method.name=lopt", "method.weight=1"],
                ["method.name=backprop"],
            )
        ),
        (None, ["method.name=scpl"]),
        (None, ["method.name=backprop", "method.context=R1E", "method.exits=linear"]),
        (VIT, ["method.name=manpp"]),
        pytest.param(VIT, ["method.name=sgr"], marks=pytest.mark.slow),
        pytest.param(None, ["method.name=contsup", *BF16], marks=pytest.mark.processes),
        pytest.param(VIT, ["method.name=sgr", *BF16], marks=pytest.mark.processes),
    ],
)
def test_exits_are_to_the_bit_what_training_said(
    model: dict[str, Any] | None, settings: list[str], tmp_path: Path
) -> None:
    """The losses tell more than the counts: they are equal only if all logits are."""
    settings = [*settings, "data.num_test=45", "runtime.stall_timeout_s=60"]
    run = trained(tmp_path / "run", *settings, model=model)
    accuracies, losses = said_by_training(run)
    report = ppll.evaluate_exits(run)
    assert list(report.exit_accuracy) == accuracies
    assert list(report.exit_loss) == losses
    assert report.num_samples == 45
    assert torch.get_num_threads() == 1
    for trade in report.trades:
        assert sum(trade.exit_share) == pytest.approx(1)
        silent = [share for share, loss in zip(trade.exit_share, losses, strict=True) if not loss]
        assert not any(silent)


def test_one_block_has_one_exit(tmp_path: Path) -> None:
    report = ppll.evaluate_exits(trained(tmp_path / "run", "method.name=backprop"))
    assert report.average_accuracy == report.exit_accuracy[0]
    for trade in report.trades:
        assert (trade.accuracy, trade.mean_blocks) == (report.exit_accuracy[0], 1)
        assert (trade.exit_share, trade.compute_share) == ((1.0,), 1)


def test_data_of_one_s_own_is_found_again(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    labels = (images.float().mean((1, 2, 3)) > 127).long()
    data = ppll.Dataset.from_arrays(train=(images, labels), test=(images[:33], labels[:33]))
    run = tmp_path / "run"
    ppll.Trainer(recipe().with_settings(["data.validation=0"]), data=data, out=run).fit()
    report = ppll.evaluate_exits(run)
    accuracies, losses = said_by_training(run)
    assert list(report.exit_accuracy) == accuracies
    assert list(report.exit_loss) == losses
    with pytest.raises(DataError, match="trained on images in bytes: give uint8 from 0 to 255"):
        ppll.measure_exits(ppll.load(run), images / 255, labels)


def test_a_network_of_one_s_own_is_measured_from_python(tmp_path: Path) -> None:
    run, data = tmp_path / "run", own_data()
    ppll.Trainer(OWN, model=own_model(), data=data, out=run).fit()
    network = ppll.load(run, model=own_model())
    report = ppll.measure_exits(network, data.test.inputs, data.test.targets, batch_size=10)
    assert list(report.exit_accuracy) == said_by_training(run)[0]
    assert ppll.evaluate_exits(run, model=own_model()).exit_accuracy == report.exit_accuracy
    assert ppll.evaluate(run, model=own_model()).exit_accuracy == report.exit_accuracy
    with pytest.raises(ModelError, match="was given from Python"):
        ppll.evaluate(run)


def test_logits_are_float32_whatever_the_precision(tmp_path: Path) -> None:
    network = ppll.load(trained(tmp_path / "run", "train.precision=bf16"))
    inputs = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert {logits.dtype for logits in network.exits(inputs)} == {torch.float32}
        assert torch.equal(network(inputs), network.exits(inputs)[-1])
        assert torch.equal(network(inputs), network(inputs).bfloat16().float())


@pytest.mark.parametrize("ask", ["__call__", "exits", "features"])
def test_what_is_no_tensor_is_refused(ask: str, run: Path) -> None:
    with pytest.raises(ModelError, match=r"a tensor of torch, found ndarray: give torch\.as_ten"):
        getattr(ppll.load(run), ask)(torch.zeros(3, 1, 8, 8).numpy())


def test_multiply_adds_by_hand() -> None:
    found = linear_network().multiply_adds(torch.zeros(1, 2))
    assert found == [BlockCompute(10, 15), BlockCompute(20, 12), BlockCompute(12, 0)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_multiply_adds_of_attention(precision: str, tmp_path: Path) -> None:
    """Five tokens of sixteen numbers: qkv, two products of attention, projection and an MLP."""
    run = trained(tmp_path / "run", f"train.precision={precision}", model=VIT)
    layer = 5 * 16 * 48 + 2 * 5 * 5 * 16 + 5 * 16 * 16 + 2 * 5 * 16 * 64
    found = ppll.load(run).multiply_adds(torch.zeros(1, 1, 8, 8))
    expected = [4 * 16 * 16 + layer, layer, layer, layer + 16 * 3]
    assert [block.layers for block in found] == expected


def test_multiply_adds_of_torch_s_own_layers(tmp_path: Path) -> None:
    """Seven rows of eight: qkv, two products of attention, projection, an MLP of width 16."""
    rows, classes = torch.randn(20, 7, 8), torch.arange(20) % 2
    data = ppll.Dataset.from_arrays(train=(rows, classes), test=(rows, classes))
    layers = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
    model = [*layers, nn.Sequential(nn.Flatten(), nn.Linear(7 * 8, 2))]
    fields = {"data": {"batch_size": 10}, "split": {"blocks": 2}, "train": {"epochs": 1}}
    ppll.Trainer(fields, model=model, data=data, out=tmp_path / "run").fit()
    found = ppll.load(tmp_path / "run", model=model).multiply_adds(rows[:1])
    layer = 7 * 8 * 24 + 2 * 7 * 7 * 8 + 7 * 8 * 8 + 2 * 7 * 8 * 16
    assert [block.layers for block in found] == [layer, layer + 7 * 8 * 2]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("exits") / "run")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *args: run_here(monkeypatch, capsys, "eval", *args)


def test_the_command_gives_json(run: Path, tmp_path: Path, command: Any) -> None:
    file = tmp_path / "exits.json"
    args = (str(run), "--exits", "--thresholds", "0.5,0.9", "--thresholds=1")
    code, printed, err = command(*args, "--json")
    assert code == 0, err
    tree = json.loads(printed)
    assert [row["threshold"] for row in tree["rows"]] == [0.5, 0.9, 1.0]
    assert tree["exit_accuracy"] == said_by_training(run)[0]
    assert set(tree["multiply_adds"][0]) == {"layers", "exit"}
    code, printed, err = command(*args, "--json", str(file))
    assert code == 0, err
    assert json.loads(file.read_text()) == tree
    assert "all averaged" in printed


def test_the_command_prints_tables(run: Path, command: Any) -> None:
    code, printed, err = command(str(run), "--exits")
    assert code == 0, err
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert lines["threshold"].split()[1:] == ["0.5", "0.7", "0.8", "0.9", "0.95", "0.99", "1"]
    assert len(lines["leave at block 2"].split()) == 4 + 7
    final = said_by_training(run)[0][-1]
    assert f"{final:.2%}" in lines["final output"]
    assert max(map(len, printed.splitlines())) <= 80


def test_silent_blocks_are_passed_over(tmp_path: Path, command: Any) -> None:
    code, printed, err = command(str(trained(tmp_path / "run", "method.name=scpl")), "--exits")
    assert code == 0, err
    assert printed.count("no prediction") == 3
    assert [line.split("  ")[0] for line in printed.splitlines() if "leave" in line] == [
        "leave at final output"
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--exits", "--stages=2"], "--exits works in one process, found --stages 2"),
        (["--thresholds=0.5"], "--thresholds needs --exits"),
        (["--exits", "--thresholds=0"], "above 0 and at most 1, found 0"),
        (["--exits", "--thresholds=0.5,-1"], "found -1"),
        (["--exits", "--thresholds=0.5", "--thresholds=1.5"], "found 1.5"),
        (["--exits", "--thresholds=nan"], "found nan"),
        (["--exits", "--thresholds=high"], "cannot read --thresholds 'high'"),
        (["--exits", "--thresholds=0.5,,1"], "cannot read --thresholds '0.5,,1'"),
        (["--exits", "--thresholds="], "cannot read --thresholds ''"),
        (["--exits", "--json=nowhere/exits.json"], "cannot write nowhere/exits.json"),
    ],
)
def test_what_cannot_be_asked_has_exit_code_2(
    args: list[str], message: str, run: Path, command: Any
) -> None:
    code, printed, err = command(str(run), *args)
    assert (code, printed) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", ["no run", "no checkpoint", "own network"])
def test_runs_that_cannot_be_asked_have_exit_code_2(
    what: str, tmp_path: Path, command: Any
) -> None:
    if what == "own network":
        ppll.Trainer(OWN, model=own_model(), data=own_data(), out=tmp_path / "run").fit()
    elif what == "no checkpoint":
        folder = trained(tmp_path / "run") / "checkpoints"
        folder.rename(tmp_path / "elsewhere")
    code, _, err = command(str(tmp_path / "run"), "--exits")
    assert code == 2
    said = {
        "no run": "there is no run folder",
        "no checkpoint": "no whole checkpoint",
        "own network": "give the same model=... to ppll.load, ppll.evaluate or",
    }
    assert said[what] in err

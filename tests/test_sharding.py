"""Replicas that share a block's parameters: the same bits in less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ppll
from ppll.blocks.averages import Averages
from ppll.blocks.optimization import build_optimizer
from ppll.checks import check_recipe
from ppll.config import Recipe
from ppll.data import Dataset
from ppll.devices import check_devices
from ppll.errors import RecipeError, WorkerError
from ppll.message import Kind, Message
from ppll.replicas.adding import Adder
from ppll.replicas.sharding import Replicas, Shares, replica_mesh
from ppll.status import Monitor, Status
from ppll.testing import FAULT_VARIABLE, Fault
from ppll.update_sections import OptimizerConfig
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe
from tests.namespaces import Network, outputs
from tests.test_hosts import train, two_hosts, weights
from tests.test_launch import descendants, listening
from tests.test_replicas import Shard, all_at_once, joined, metrics, private_cache, recipe

__all__ = ["private_cache", "two_hosts"]

processes = pytest.mark.processes
slow = pytest.mark.slow
ADAMW = {"name": "adamw", "lr": 0.01, "clip_norm": 1.0}
LONG_EVALUATIONS: dict[str, Any] = {
    "data": {"eval_batch_size": 1, "validation": 9},
    "runtime": {"capacity": 2},
    "train": {"epochs": 2, "ema": 0.9},
}
"""Of more batches than a channel holds, after every epoch."""


def sharded(replicas: Any = 2, sharding: str = "fsdp", stages: int = 1, **others: Any) -> Recipe:
    sections = {k: dict(v) for k, v in others.items()}
    network = sections.pop("model", {}).pop("name", "vit")
    train = {"epochs": 3, "seed": 5, "replicas": replicas, **sections.pop("train", {})}
    runtime = {"stages": stages, "stall_timeout_s": 60.0, "log_every_steps": 2}
    runtime |= {"sharding": sharding, **sections.pop("runtime", {})}
    return recipe(1, network, train=train, runtime=runtime, **sections)


def files(out: Path) -> dict[str, bytes]:
    """What the newest checkpoint holds, but for the recipe in its manifest."""
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    return {path.name: path.read_bytes() for path in newest.glob("block-*.safetensors")}


# --- what travels --------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [2, 3, 5])
@pytest.mark.parametrize("size", [3, 700_001], ids=["small", "in-pieces"])
def test_parts_are_added_up_and_gathered_in_one_order(num: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(num, size, generator=generator) for _ in range(num)]
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    lines = joined(num)

    def share(index: int) -> Callable[[], None]:
        def work() -> None:
            lines[index].scatter(list(rows[index]), index, "rows")
            rows[index][torch.arange(num) != index] = float("nan")
            lines[index].gather(list(rows[index]), index, "rows")

        return work

    all_at_once([share(index) for index in range(num)])
    assert all(torch.equal(row, total) for row in rows)


# --- what is rounded -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_updates_round_alike_wherever_a_tensor_is_cut(name: Any) -> None:
    """What the same bits stand on: kernels that take elements in rows, and what is left of them."""
    generator = torch.Generator().manual_seed(0)
    config = OptimizerConfig(name=name, lr=0.05)
    for rows, columns, num in [(1, 3, 2), (7, 5, 2), (37, 11, 3), (64, 9, 4), (129, 1, 5)]:
        whole = nn.Linear(columns, rows, bias=False)
        parts = whole.weight.data.chunk(num)
        cut = nn.ParameterList(part.clone() for part in parts)
        optimizers = [build_optimizer(config, 0, [module]) for module in (whole, cut)]
        averages = [Averages(module.named_parameters(), 0.7) for module in (whole, cut)]
        for step in range(1, 5):
            whole.weight.grad = torch.randn(rows, columns, generator=generator)
            for part, gradient in zip(cut, whole.weight.grad.chunk(num), strict=True):
                part.grad = gradient.clone()
            for optimizer, average in zip(optimizers, averages, strict=True):
                optimizer.step()
                average.update(step)
        assert torch.equal(whole.weight, torch.cat(list(cut)))
        own, joined_up = ([t for _, t in average.named()] for average in averages)
        assert torch.equal(own[0], torch.cat(joined_up))


# --- what a replica keeps ------------------------------------------------------------------------


class Nobody:
    """Replicas that have nothing but zeros."""

    def gather(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        for index, part in enumerate(parts):
            if index != own:
                part.zero_()

    def scatter(self, parts: Sequence[Tensor], own: int, what: str) -> None:
        pass


def kept_bytes(num: int) -> tuple[int, int]:
    """Bytes of parameters, and of optimizer state, that the first of ``num`` replicas keeps."""
    made = small_recipe("vit", optimizer="adamw", split_blocks=2)
    batches = MadeUpBatches((6,))
    blueprint = blueprint_of(made, batches)
    tensors = batches.train_batch(0, 0)
    with replica_mesh(0, num) as mesh:
        block = blueprint.build_block(0, torch.device("cpu"))
        replicas = Replicas(Nobody(), Adder(lambda tensors, what: list(tensors), Monitor()), mesh)
        block.join(Shares(block.modules, replicas, may_leave_out=False), 0)
        values = {n: torch.ones(t.shape) for n, t in block.modules.named_tensors()}
        block.load(values, {})
        block.forward(Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=tensors))
        block.learn()
        parameters = sum(
            p.nbytes for g in block.updates.optimizer.param_groups for p in g["params"]
        )
        state = sum(t.nbytes for _, t in block.updates.named_state() if t.ndim)
        in_modules = sum(p.to_local().nbytes for _, p in block.modules.named_parameters())
    assert in_modules == parameters  # Between batches nothing else is there.
    return parameters, state


def test_a_replica_keeps_its_share() -> None:
    """Up to what does not come out even: the class token has one row, which the first keeps."""
    (parameters, state), (quarter, state_of_quarter) = kept_bytes(2), kept_bytes(8)
    assert state == 2 * parameters
    assert state_of_quarter == 2 * quarter
    assert quarter == pytest.approx(parameters / 4, rel=0.05)


# --- whole runs ----------------------------------------------------------------------------------


@processes
@pytest.mark.parametrize(
    ("replicas", "stages", "others"),
    [
        pytest.param(2, 2, {"model": {"name": "resnet"}}, id="batch-norm"),
        pytest.param(
            3,
            1,
            {"optimizer": ADAMW, "train": {"epochs": 1, "ema": 0.9, "accumulate": 2}},
            id="three",
            marks=slow,
        ),
        pytest.param([1, 2], 2, LONG_EVALUATIONS, id="more", marks=slow),
        pytest.param([2, 4], 2, LONG_EVALUATIONS, id="two-and-four", marks=slow),
        pytest.param(
            [1, 3, 1], 3, {**LONG_EVALUATIONS, "split": {"blocks": 3}}, id="wide", marks=slow
        ),
        pytest.param([2, 1], 2, LONG_EVALUATIONS, id="fewer", marks=slow),
        pytest.param(2, 1, {"train": {"precision": "fp16"}}, id="fp16", marks=slow),
        pytest.param(2, 1, {"train": {"precision": "bf16"}}, id="bf16", marks=slow),
        pytest.param(
            2, 1, {"train": {"activation_checkpointing": True}}, id="computed-again", marks=slow
        ),
    ],
)
def test_shares_change_no_bit(
    replicas: Any, stages: int, others: dict[str, Any], tmp_path: Path
) -> None:
    """Checkpoints and metrics, with evaluations, clipping and ragged batches among them."""
    found = {}
    for sharding in ("none", "fsdp"):
        made = sharded(replicas, sharding, stages, **others)
        found[sharding] = ppll.Trainer(made, out=tmp_path / sharding).fit()
    assert found["fsdp"].weights_sha256 == found["none"].weights_sha256
    assert found["fsdp"].exit_accuracy == found["none"].exit_accuracy
    assert files(tmp_path / "fsdp") == files(tmp_path / "none")
    assert metrics(tmp_path / "fsdp") == metrics(tmp_path / "none")


class Droppable(nn.Module):
    """A residual layer that training passes over at random, each replica by its own numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, features: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 0.5:
            return features
        return features + torch.relu(self.linear(features))


class Either(nn.Module):
    """One of two parts, at random."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, features: Tensor) -> Tensor:
        part: Tensor = self.parts[int(torch.rand(()) < 0.5)](features)
        return part


class Pair(nn.Module):
    """Hands on two tensors."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features.abs()


class DroppablePair(nn.Module):
    """Takes two tensors and hands them on, changed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Droppable()

    def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.layer(both[0]), both[1]


class Sum(nn.Module):
    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return both[0] + both[1]


DROPPABLE: dict[str, Callable[[], list[nn.Module]]] = {
    "layers": lambda: [Droppable(), Either(), Droppable(), Droppable(), Either(), Droppable()],
    "several-tensors": lambda: [
        *(Pair(), DroppablePair(), DroppablePair()),
        *(DroppablePair(), DroppablePair(), Sum()),
    ],
}


@processes
@pytest.mark.parametrize(
    ("middle", "replicas", "others"),
    [
        pytest.param("layers", 2, {}, id="layers", marks=slow),
        pytest.param("layers", 3, {"train": {"accumulate": 2}}, id="parts", marks=slow),
        pytest.param("layers", [1, 2], {}, id="more", marks=slow),
        pytest.param("several-tensors", 2, {}, id="several-tensors", marks=slow),
        pytest.param(
            "layers", 2, {"train": {"activation_checkpointing": True}}, id="again", marks=slow
        ),
        pytest.param("layers", 2, {"train": {"on_nonfinite": "skip"}}, id="skip", marks=slow),
    ],
)
def test_replicas_may_pass_over_other_layers(
    middle: str, replicas: Any, others: dict[str, Any], tmp_path: Path
) -> None:
    """The second block begins with such a layer: nothing before it needs a gradient."""
    inputs = torch.randn(45, 8, generator=torch.Generator().manual_seed(0))
    data = Dataset.from_arrays(train=(inputs, torch.arange(45) % 2), test=(inputs, [0] * 45))
    train = {"epochs": 2, "ema": 0.9, **others.get("train", {})}
    found = {}
    for sharding in ("none", "fsdp"):
        stages = 1 if isinstance(replicas, int) else 2
        made = sharded(replicas, sharding, stages, optimizer=ADAMW, train=train)
        tree = {**made.model_dump(mode="json", exclude_none=True), "model": {}}
        tree["data"] = {"batch_size": 12}
        torch.manual_seed(0)  # The run starts from the values of these layers.
        model = nn.Sequential(nn.Linear(8, 8), *DROPPABLE[middle](), nn.Linear(8, 2))
        trainer = ppll.Trainer(tree, model=model, data=data, out=tmp_path / sharding)
        found[sharding] = trainer.fit()
    assert found["fsdp"].weights_sha256 == found["none"].weights_sha256
    assert files(tmp_path / "fsdp") == files(tmp_path / "none")
    assert metrics(tmp_path / "fsdp") == metrics(tmp_path / "none")


class Cut(Droppable):
    """At random, does not even use its input."""

    def forward(self, features: Tensor) -> Tensor:
        if self.training and torch.rand(()) < 0.5:
            return torch.zeros_like(features)
        return torch.relu(self.linear(features))


@slow
@processes
def test_replicas_that_cannot_do_the_same_are_named(tmp_path: Path) -> None:
    """They neither hang nor add up gradients of different layers of one size."""
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    data = Dataset.from_arrays(train=(inputs, torch.arange(40) % 2), test=(inputs, [0] * 40))
    tree = {**sharded().model_dump(mode="json", exclude_none=True), "model": {}}
    tree["data"] = {"batch_size": 8}
    model = nn.Sequential(nn.Linear(8, 8), *(Cut() for _ in range(4)), nn.Linear(8, 2))
    with pytest.raises(WorkerError, match=r"ProtocolError: .* in the same order"):
        ppll.Trainer(tree, model=model, data=data, out=tmp_path / "run").fit()


@slow
@processes
@pytest.mark.parametrize(
    "method",
    [
        *("auglocal", "backprop", "contsup", "greedy", "infopro"),
        *("lopt", "predsim", "scpl", "sedona", "zerolock"),
    ],
)
def test_shares_change_no_bit_of_any_method(method: str, tmp_path: Path) -> None:
    found = set()
    for sharding in ("none", "fsdp"):
        tree = sharded(2, sharding).model_dump(mode="json", exclude_none=True)
        tree["method"] = {"name": method}
        found.add(ppll.Trainer(tree, out=tmp_path / sharding).fit().weights_sha256)
    assert len(found) == 1


@pytest.mark.slow
@processes
def test_a_run_goes_on_with_shares_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure in the replica that saves nothing; other stages, too."""
    whole = ppll.Trainer(sharded(2, "none", optimizer=ADAMW), out=tmp_path / "whole").fit()
    for before, after, stages in (("fsdp", "none", 2), ("none", "fsdp", 2)):
        out = tmp_path / before
        fault = Fault(1, 10).to_environment()
        monkeypatch.setenv(FAULT_VARIABLE, fault[FAULT_VARIABLE])
        with pytest.raises(WorkerError, match=r"rank 1 \(stage 0 of replica 1.*step 10"):
            ppll.Trainer(sharded(2, before, optimizer=ADAMW), out=out).fit()
        monkeypatch.delenv(FAULT_VARIABLE)
        made = sharded(2, after, stages, optimizer=ADAMW)
        again = ppll.Trainer(made, out=out, resume=True).fit()
        assert again.weights_sha256 == whole.weights_sha256


@slow
@processes
def test_a_run_goes_on_right_before_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last batch of an epoch; nothing was gathered before it."""
    others = {**LONG_EVALUATIONS, "checkpoint": {"every_steps": 4}}
    whole = ppll.Trainer(sharded([1, 2], "none", 2, **others), out=tmp_path / "whole").fit()
    made = sharded([1, 2], "fsdp", 2, **others)
    monkeypatch.setenv(FAULT_VARIABLE, Fault(2, 7).to_environment()[FAULT_VARIABLE])
    with pytest.raises(WorkerError, match=r"rank 2 \(stage 1 of replica 1.*step 7"):
        ppll.Trainer(made, out=tmp_path / "run").fit()
    monkeypatch.delenv(FAULT_VARIABLE)
    again = ppll.Trainer(made, out=tmp_path / "run", resume=True).fit()
    assert again.weights_sha256 == whole.weights_sha256
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "validation"]
    assert [row["step"] for row in rows if not row["block"]] == [4, 8]


@processes
def test_a_replica_that_is_killed_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits for its share in the middle of a backward pass."""
    fault = Fault(1, 6, "LEARN", "kill").to_environment()
    monkeypatch.setenv(FAULT_VARIABLE, fault[FAULT_VARIABLE])
    pattern = r"rank 1 \(stage 0 of replica 1.*the process was killed by SIGKILL"
    with pytest.raises(WorkerError, match=pattern):
        ppll.Trainer(sharded(), out=tmp_path / "run").fit()


@processes
def test_what_one_replica_leaves_out_all_leave_out(tmp_path: Path) -> None:
    """One sample spoils its batch of four, in both epochs; no replica goes back alone."""
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    inputs[7, 0] = 99.0
    targets = torch.arange(12) % 2
    data = Dataset.from_arrays(train=(inputs, targets), test=(inputs[:2], targets[:2]))
    found = set()
    for sharding in ("none", "fsdp"):
        tree = sharded(2, sharding).model_dump(mode="json", exclude_none=True)
        tree |= {"data": {"batch_size": 4}, "model": {}}
        tree["train"] = {"epochs": 2, "replicas": 2, "on_nonfinite": "skip"}
        torch.manual_seed(0)  # The run starts from the values of these layers.
        layers = nn.Sequential(Shard(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        out = tmp_path / sharding
        found.add(ppll.Trainer(tree, model=layers, data=data, out=out).fit().weights_sha256)
    assert len(found) == 1
    rows = [
        row for row in metrics(tmp_path / "fsdp") if (row["kind"], row["block"]) == ("train", 0)
    ]
    assert sum(row.get("skipped", 0) for row in rows) == 8


@processes
@slow
def test_no_port_is_open(tmp_path: Path) -> None:
    found: list[set[str]] = []

    def look(statuses: Sequence[Status]) -> None:
        if not found and all(status.step for status in statuses):
            pids = [pid for pid in descendants(os.getpid()) if Path(f"/proc/{pid}").exists()]
            assert len(pids) >= 2
            found.append(set().union(*(listening(pid) for pid in pids)))

    ppll.Trainer(sharded(), out=tmp_path / "run", watch=look).fit()
    assert found == [set()]


@slow
@processes
@pytest.mark.timeout(300)
def test_two_hosts_share(two_hosts: Network, tmp_path: Path) -> None:
    replicas, short = "--set=train.replicas=2", "--set=train.epochs=1"
    shares = train(tmp_path / "two", replicas, short, "--set=runtime.sharding=fsdp")
    agents = two_hosts.torchrun(shares, 2)
    printed = outputs(agents)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(printed)
    alone = [sys.executable, "-m", *train(tmp_path / "one", replicas, short, "--quiet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(alone, check=True, capture_output=True, env=environment)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


@slow
@processes
def test_a_checkpoint_is_evaluated_without_shares(tmp_path: Path) -> None:
    result = ppll.Trainer(sharded(train={"ema": 0.9}), out=tmp_path / "run").fit()
    assert ppll.evaluate(tmp_path / "run").exit_accuracy == result.exit_accuracy


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"replicas": 1}, "train.replicas = 1, where nobody is to share with"),
        ({"replicas": [1, 1]}, "nobody is to share with"),
        ({"train": {"compile": True}}, "train.compile"),
        ({"train": {"channels_last": True}}, "train.channels_last"),
        ({"train": {"cuda_graphs": True}}, "train.cuda_graphs"),
        ({"optimizer": {"fused": True}}, "optimizer.fused"),
        ({"train": {"accumulate": 2, "on_nonfinite": "skip"}}, "train.accumulate above 1 and"),
        ({"runtime": {"sharding": "zero"}}, "runtime.sharding: .*'none' or 'fsdp'"),
    ],
)
def test_what_cannot_be_shared_is_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sharded(**others)


@pytest.mark.parametrize("method", ["man", "solo", "sgr"])
def test_methods_that_ask_for_more_are_refused(method: str) -> None:
    with pytest.raises(RecipeError, match=f"runtime.sharding: method '{method}'"):
        check_recipe(sharded(method={"name": method, "auxiliary": None}), own_model=False)


def test_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=r"runtime\.sharding shares what lies in"):
        check_devices(sharded(runtime={"devices": "cuda"}))

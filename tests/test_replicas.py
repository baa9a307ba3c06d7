"""Replicas: the learning rule of the whole batch, the same bits wherever they run."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ppll
from ppll.bench.entrants import Race
from ppll.blocks.alone import Alone
from ppll.channels.greeting import MAX_CAPACITY
from ppll.channels.local import local_channel
from ppll.config import Recipe
from ppll.data import Dataset
from ppll.ending import Ending
from ppll.errors import (
    ChannelClosed,
    DataError,
    Interrupted,
    ProtocolError,
    RecipeError,
    WorkerError,
)
from ppll.interrupts import Wish
from ppll.mesh import Mesh
from ppll.message import Kind, Message
from ppll.replicas.adding import Adder
from ppll.replicas.exchange import Exchange, buckets_of
from ppll.replicas.line import Line, Neighbour, line_capacity
from ppll.status import Activity, Monitor
from ppll.testing import FAULT_VARIABLE, Fault
from tests.interleaving import (
    NETWORKS,
    OPTIMIZERS,
    MadeUpBatches,
    blueprint_of,
    built_blocks,
    small_recipe,
)

processes = pytest.mark.processes

TOLERANCE = 2e-6
"""How far parameters may be from those of one replica after 15 steps, as sums have another order.
They are of size 0.3; a gradient that is wrong by a hundredth moves them by more than 1e-4."""


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def recipe(replicas: int, network: str = "vit", stages: int = 1, **others: Any) -> Recipe:
    """45 samples in batches of 10: the last batch has five, which two replicas share unevenly."""
    tree: dict[str, Any] = {
        "data": {
            "name": "synthetic",
            "shape": [1, 8, 8],
            "num_classes": 3,
            "num_train": 45,
            "num_test": 10,
            "batch_size": 10,
            "crop": 1,
        },
        "model": {**NETWORKS[network], **({"dropout": 0.0} if network == "vit" else {})},
        "split": {"blocks": 2},
        "method": {"name": "dgl", "auxiliary": "linear"},
        "optimizer": {**OPTIMIZERS["sgd"], "clip_norm": 1.0},
        "schedule": {"warmup_epochs": 1},
        "train": {"epochs": 3, "seed": 5, "replicas": replicas},
        "runtime": {"stages": stages, "stall_timeout_s": 60.0, "log_every_steps": 2},
        "checkpoint": {"every_steps": 4, "keep": 1},
    }
    for section, keys in others.items():
        tree[section] = {**tree.get(section, {}), **keys}
    return Recipe.from_dict(tree)


def fit(out: Path, replicas: int, network: str = "vit", stages: int = 1, **others: Any) -> Any:
    return ppll.Trainer(recipe(replicas, network, stages, **others), out=out).fit()


def weights(out: Path) -> dict[str, Tensor]:
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    found: dict[str, Tensor] = {}
    for path in newest.glob("block-??.safetensors"):
        found |= load_file(path)
    return found


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- the line ------------------------------------------------------------------------------------


def joined(num: int, endings: Sequence[Ending] | None = None) -> list[Line]:
    """A line of replicas over channels of this process."""
    ups = [local_channel(line_capacity(num)) for _ in range(num - 1)]
    backs = [local_channel(line_capacity(num)) for _ in range(num - 1)]
    return [
        Line(
            Neighbour(ups[i - 1][1], backs[i - 1][0]) if i else None,
            Neighbour(backs[i][1], ups[i][0]) if i < num - 1 else None,
            num - 1 - i,
            endings[i] if endings else Ending(),
        )
        for i in range(num)
    ]


def all_at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("num", [2, 3, 5])
def test_sums_have_one_order_in_any_replica(num: int) -> None:
    """Also of more numbers than travel at once, and of several types and shapes."""
    generator = torch.Generator().manual_seed(0)
    own = [
        [
            torch.randn(3_000_001, generator=generator),
            torch.randn(3, 5, generator=generator).t(),
            torch.tensor(index),
            torch.tensor([index == 1]),
            torch.randn(4, generator=generator, dtype=torch.float64),
        ]
        for index in range(num)
    ]
    lines = joined(num)
    found = all_at_once([lambda i=i: lines[i].add_up(own[i], "sums") for i in range(num)])
    expected = list(own[0])
    for others in own[1:]:
        expected = [total + other for total, other in zip(expected, others, strict=True)]
    for totals in found:
        for total, wanted in zip(totals, expected, strict=True):
            assert total.dtype == wanted.dtype
            assert torch.equal(total, wanted)


def test_there_may_be_more_replicas_than_a_channel_has_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ppll.replicas.line.PIECE_BYTES", 4)
    num, row = 34, torch.arange(70.0)
    assert line_capacity(num) == line_capacity(1024) == MAX_CAPACITY
    lines = joined(num)
    for totals in all_at_once([lambda i=i: lines[i].add_up([row], "sums") for i in range(num)]):
        assert torch.equal(totals[0], num * row)


@pytest.mark.parametrize(
    "asked",
    [
        lambda line: line.add_up([torch.ones(4)], "bucket 1 of layer"),
        lambda line: line.add_up([torch.ones(5)], "bucket 0 of layer"),
        lambda line: line.add_up([torch.ones(4, dtype=torch.int32)], "bucket 0 of layer"),
        lambda line: line.scatter([torch.ones(2)] * 2, 1, "scatter layer.2"),
        lambda line: line.gather([torch.ones(2)] * 2, 1, "gather layer.2"),
    ],
    ids=["another", "longer", "other-type", "scatter", "gather"],
)
def test_replicas_that_do_not_ask_for_the_same_are_found(asked: Callable[[Line], Any]) -> None:
    first, second = joined(2)
    found: list[str] = []

    def other() -> None:
        with pytest.raises(ProtocolError, match="same in the same order") as caught:
            asked(second)
        found.append(str(caught.value))
        second._before.outbox.close()

    def own() -> None:
        with pytest.raises(ChannelClosed):
            first.add_up([torch.ones(4)], "bucket 0 of layer")

    all_at_once([own, other])
    assert "[bucket " in found[0]


def test_a_rank_says_that_it_waits_for_its_replicas() -> None:
    first, second = joined(2)
    seen = []

    class Seen(Monitor):
        def enter(self, activity: Activity, **fields: Any) -> None:
            super().enter(activity, **fields)
            seen.append((activity, self.status.block))

    monitor, found = Seen(), []
    monitor.enter(Activity.LEARN, block=3)
    adder = Adder(first.add_up, monitor)
    adder.start([torch.ones(2)], "ones", found.extend)
    assert seen == [(Activity.LEARN, 3)]  # It goes on with its own work.
    all_at_once([lambda: second.add_up([torch.ones(2)], "ones"), adder.finish])
    assert found[0].tolist() == [2, 2]
    assert seen == [(Activity.LEARN, 3), (Activity.AVERAGE, 3), (Activity.LEARN, 3)]
    assert Activity.AVERAGE.waits
    adder.close()


def test_a_replica_that_is_gone_is_seen_at_the_end() -> None:
    first, second = joined(2)
    adder = Adder(first.add_up, Monitor())
    adder.start([torch.ones(2)], "ones", lambda totals: None)
    assert second._before is not None
    second._before.outbox.close()
    with pytest.raises(ChannelClosed):
        adder.finish()
    adder.close()


@pytest.mark.parametrize(("least", "expected"), [(1, [2, 1, 0]), (12, [2, 1, 0]), (13, [5, 0])])
def test_buckets_come_as_the_backward_pass_makes_them(least: int, expected: list[int]) -> None:
    parameters = [torch.zeros(10), torch.zeros(7), torch.zeros(3)]
    found = buckets_of(parameters, least)
    sizes = {2: 12, 1: 28, 0: 40, 5: 40}
    assert [sum(p.nbytes for p in bucket) for bucket in found] == [sizes[i] for i in expected]


class Recording(Adder):
    """Notes what is asked of it; alone, it finds its own numbers to be the sums."""

    def __init__(self) -> None:
        super().__init__(lambda tensors, what: list(tensors), Monitor())
        self.sizes: list[list[int]] = []

    def start(
        self, tensors: Sequence[Tensor], what: str, take: Callable[[list[Tensor]], None]
    ) -> None:
        self.sizes.append([tensor.numel() for tensor in tensors])
        super().start(tensors, what, take)


def test_gradients_are_added_up_while_others_are_made() -> None:
    """Those of the last layers before the first layers have any."""
    batches = MadeUpBatches((6,))
    block = built_blocks(blueprint_of(small_recipe("vit", split_blocks=2), batches))[0]
    adder = Recording()
    block.join(Exchange(block.modules, adder, is_first=True, bucket_bytes=1), 0)
    trained = [p for _, p in block.modules.named_parameters()]
    seen: list[int] = []
    trained[0].register_post_accumulate_grad_hook(lambda p: seen.append(len(adder.sizes)))
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=dict(batches.train_batch(0, 0)))
    block.forward(message)
    block.learn()
    assert adder.sizes[:-1] == [[p.numel()] for p in reversed(trained)]
    assert seen[0] > len(trained) // 2
    adder.close()


def test_what_has_no_gradient_is_added_up_at_the_end() -> None:
    """In a bucket that waited for it, and behind all others where the batch is left out."""
    layer, unused = nn.Linear(2, 2), nn.Linear(3, 1)
    modules = Modules([("layer", layer), ("unused", unused)])
    adder = Recording()
    exchange = Exchange(modules, adder, is_first=True, bucket_bytes=1)  # type: ignore[arg-type]
    exchange.begin()
    layer(torch.ones(1, 2)).sum().backward()
    assert adder.sizes == []  # The first bucket is one that never has any.
    assert not exchange.gather(leaves_out=False)
    assert adder.sizes == [[1], [3], [2], [4], [5]]
    assert unused.weight.grad is None
    assert layer.bias.grad.tolist() == [1, 1]
    assert exchange.gather(leaves_out=True)
    assert len(adder.sizes) == 10
    adder.close()


def test_gradients_that_share_memory_are_added_up_each_by_itself() -> None:
    """Autograd may give two parameters views of one gradient; here one sample's."""
    token, position = (nn.Parameter(torch.randn(1, 3)) for _ in range(2))
    holder = nn.ParameterDict({"token": token, "position": position})
    adder = Adder(lambda tensors, what: [2 * tensor for tensor in tensors], Monitor())
    modules = Modules([("embedding", holder)])
    exchange = Exchange(modules, adder, is_first=True, bucket_bytes=1)  # type: ignore[arg-type]
    factor = torch.randn(1, 1, 3)
    exchange.begin()
    ((token.unsqueeze(0) + position.unsqueeze(0)) * factor).sum().backward()
    exchange.gather(leaves_out=False)
    for parameter in (token, position):
        assert torch.equal(parameter.grad, 2 * factor[0])
    adder.close()


def gated(module: nn.Module) -> Tensor:
    """A path that a number has shut: its gradient is zero, but there is one."""
    return module.shut * module.gated.sum()


def passed_over(module: nn.Module) -> Tensor:
    return module.kept.sum() * 0.0


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize(
    ("paths", "is_updated"),
    [((gated, passed_over), True), ((passed_over, gated), True), ((passed_over,) * 2, False)],
    ids=["first", "last", "none"],
)
def test_a_gradient_is_there_if_it_is_in_any_replica(
    paths: Sequence[Callable[[nn.Module], Tensor]], is_updated: bool, num_parts: int
) -> None:
    """Also one of zero: weight decay and momentum change what has one, in all replicas or none.

    Only the first part of a batch has the path.
    """
    modules = []
    for _ in paths:
        module = nn.ParameterDict({"gated": torch.ones(3), "kept": torch.ones(3)})
        module.register_buffer("shut", torch.tensor(0.0))
        modules.append(module)

    def step(index: int, line: Line) -> None:
        module, adder = modules[index], Adder(line.add_up, Monitor())
        named = Modules([("layer", module)])
        exchange = Exchange(named, adder, is_first=index == 0)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
        for part in range(num_parts):
            if part == num_parts - 1:
                exchange.begin()
            path = passed_over if part else paths[index]
            (module.kept.sum() + path(module)).backward()
        exchange.gather(leaves_out=False)
        optimizer.step()
        adder.close()

    all_at_once([lambda i=i, line=line: step(i, line) for i, line in enumerate(joined(2))])
    for module in modules:
        expected = 1 - 0.1 * 0.1 if is_updated else 1.0
        assert torch.equal(module.gated, torch.full((3,), expected))
        assert (module.gated.grad is not None) == is_updated


def test_no_gradient_changes_no_bit_of_another_replica_s() -> None:
    """As of one replica with the whole batch: -0.0 stays -0.0."""
    layers = [nn.ParameterDict({"weight": torch.ones(1)}) for _ in range(2)]

    def step(index: int, line: Line) -> None:
        adder = Adder(line.add_up, Monitor())
        named = Modules([("layer", layers[index])])
        exchange = Exchange(named, adder, is_first=index == 0)  # type: ignore[arg-type]
        if index:
            (layers[index].weight * torch.tensor([-0.0])).sum().backward()
        exchange.gather(leaves_out=False)
        adder.close()

    all_at_once([lambda i=i, line=line: step(i, line) for i, line in enumerate(joined(2))])
    assert [str(layer.weight.grad.item()) for layer in layers] == ["-0.0", "-0.0"]


class Modules:
    """What an exchange asks of a block's modules."""

    def __init__(self, named: list[tuple[str, nn.Module]]) -> None:
        self._named = named

    def named(self) -> list[tuple[str, nn.Module]]:
        return self._named

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = self._named
        return [(f"{name}.{n}", p) for name, module in named for n, p in module.named_parameters()]


@pytest.mark.parametrize("wish", [Wish.SAVE, Wish.TEST])
def test_the_last_batch_of_a_run_that_ends_early_comes_to_all(wish: Wish) -> None:
    endings = [Ending(lambda: wish, 6), Ending(), Ending()]
    assert not endings[0].after(10)
    lines = joined(3, endings)
    all_at_once([lambda line=line: line.add_up([torch.ones(1)], "ones") for line in lines])
    assert [[ending.after(step) for step in (15, 16)] for ending in endings] == [[False, True]] * 3
    assert [ending.is_tested for ending in endings] == [wish is Wish.TEST] * 3


def test_ranks_of_a_replica_follow_each_other() -> None:
    mesh = Mesh.of(3, 2)
    assert [mesh.place(rank) for rank in (0, 2, 4)] == [
        "stage 0 of replica 0",
        "stage 2 of replica 0",
        "stage 1 of replica 1",
    ]
    assert all(mesh.rank(mesh.replica(r), mesh.stage(r)) == r for r in range(mesh.size))
    assert Mesh.of(3).place(2) == "stage 2"


# --- whole runs ----------------------------------------------------------------------------------


@processes
@pytest.mark.parametrize(
    "others",
    [
        {},
        pytest.param({"train": {"accumulate": 2, "ema": 0.9}}, marks=pytest.mark.slow),
        pytest.param({"split": {"features_dtype": "bf16"}}, marks=pytest.mark.slow),
        pytest.param({"data": {"mixup": 0.4}}, marks=pytest.mark.slow),
        pytest.param({"method": {"name": "man"}}, marks=pytest.mark.slow),
    ],
    ids=["plain", "parts-and-averages", "bf16-features", "mixed", "slow-parameters"],
)
def test_two_replicas_learn_as_one(others: dict[str, Any], tmp_path: Path) -> None:
    """Up to the order of sums; here no batch norm, whose statistics are those of a shard."""
    sections = {k: dict(v) for k, v in others.items()}
    seed = {"epochs": 3, "seed": 5, **sections.pop("train", {})}
    found = {
        replicas: fit(
            tmp_path / str(replicas), replicas, train={**seed, "replicas": replicas}, **sections
        )
        for replicas in (1, 2)
    }
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert one.keys() == two.keys()
    off = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    assert off < TOLERANCE * (500 if "split" in others else 1)
    assert found[2].num_replicas == (2,)
    assert found[2].weights_sha256 != found[1].weights_sha256  # else nothing was shared
    assert len(found[2].busy_fraction) == 1
    for mine, theirs in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert {k: v for k, v in mine.items() if k != "loss"} == {
            k: v for k, v in theirs.items() if k != "loss"
        }
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@processes
def test_the_same_bits_on_any_number_of_stages(tmp_path: Path) -> None:
    """With batch norm, too; replicas with other buffers would be found at the end."""
    found = {
        stages: fit(tmp_path / str(stages), 2, "resnet", stages).weights_sha256 for stages in (1, 2)
    }
    assert found[1] == found[2]
    events = json.loads((tmp_path / "2" / "timeline.json").read_text())["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named[3] == "stage 1 of replica 1"
    assert "average wait" in {event["name"] for event in events}


@pytest.mark.slow
@processes
def test_a_run_that_goes_on_has_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure in a replica that saves nothing, which is named."""
    whole = fit(tmp_path / "whole", 2, "resnet", 2)
    fault = Fault(3, 10)
    monkeypatch.setenv(FAULT_VARIABLE, fault.to_environment()[FAULT_VARIABLE])
    pattern = r"rank 3 \(stage 1 of replica 1, block 1\) failed at step 10, in the learning step"
    with pytest.raises(WorkerError, match=pattern):
        fit(tmp_path / "broken", 2, "resnet", 2)
    monkeypatch.delenv(FAULT_VARIABLE)
    again = ppll.Trainer(recipe(2, "resnet", 1), out=tmp_path / "broken", resume=True).fit()
    assert again.weights_sha256 == whole.weights_sha256


@processes
@pytest.mark.parametrize(
    ("how", "activity", "cause"),
    [
        ("kill", "FORWARD", "the process was killed by SIGKILL"),
        pytest.param("stop", "AVERAGE", "no progress for 1 s", marks=pytest.mark.slow),
    ],
)
def test_a_replica_that_is_gone_ends_all(
    how: Any, activity: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(1, 6, activity, how).to_environment()
    monkeypatch.setenv(FAULT_VARIABLE, fault[FAULT_VARIABLE])
    with pytest.raises(WorkerError, match=rf"rank 1 \(stage 0 of replica 1.*{cause}"):
        fit(tmp_path / "run", 2, runtime={"stages": 1, "stall_timeout_s": 1.0})


class Interrupting(ppll.Callback):
    """Sends this process Ctrl-C after the first numbers."""

    def on_metrics(self, row: Any) -> None:
        if row["step"] == 2 and row["block"] == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@processes
def test_an_interrupted_run_stops_everywhere_after_the_same_batch(tmp_path: Path) -> None:
    out, epochs = tmp_path / "run", {"epochs": 60, "seed": 5, "replicas": 2}
    whole = fit(tmp_path / "whole", 2, train=epochs)
    with pytest.raises(Interrupted, match="interrupted at step"):
        ppll.Trainer(recipe(2, train=epochs), out=out, callbacks=[Interrupting()]).fit()
    again = ppll.Trainer(recipe(2, train=epochs), out=out, resume=True).fit()
    assert again.weights_sha256 == whole.weights_sha256


class Shard(nn.Module):
    """Spoils the loss of the batch with a certain sample."""

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs.flatten(1)
        bad = (features.detach()[:, :1] > 90).any()
        return torch.where(bad, features * float("nan"), features)


@processes
def test_what_one_replica_leaves_out_all_leave_out(tmp_path: Path) -> None:
    """One of six samples spoils every loss it is in; only two batches of three are learned from."""
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    inputs[7, 0] = 99.0
    targets = torch.arange(12) % 2
    data = Dataset.from_arrays(train=(inputs, targets), test=(inputs[:2], targets[:2]))
    layers = nn.Sequential(Shard(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    tree = recipe(2).model_dump(mode="json", exclude_none=True)
    tree["data"] = {"batch_size": 4}
    tree["model"] = {}
    tree["train"] = {"epochs": 1, "replicas": 2, "on_nonfinite": "skip"}
    ppll.Trainer(tree, model=layers, data=data, out=tmp_path / "run").fit()
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "train"]
    assert sum(row.get("skipped", 0) for row in rows if row["block"] == 0) == 4
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"data": {"batch_size": 2}, "train": {"replicas": 3}}, "train.replicas = 3 share"),
        ({"train": {"replicas": 3, "accumulate": 4}}, "a replica's shard of data.batch_size"),
        ({"train": {"replicas": 0}}, "train.replicas"),
    ],
)
def test_too_few_samples_are_refused(others: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(1, **others)


def test_an_empty_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few for 6 replicas"):
        ppll.Trainer(recipe(6, data={"num_train": 25}), out=tmp_path / "run")


def test_another_number_of_replicas_is_another_run(tmp_path: Path) -> None:
    fit(tmp_path / "run", 1)
    with pytest.raises(RecipeError, match=r"train.replicas \(was 1, is 2\)"):
        ppll.Trainer(recipe(2), out=tmp_path / "run", resume=True).fit()


def test_a_comparison_is_of_one_pipeline() -> None:
    with pytest.raises(RecipeError, match="a comparison is of one pipeline"):
        Race.prepared(recipe(2), 2, 4, 0)


def test_replicas_drop_out_other_features() -> None:
    batches = MadeUpBatches((6,))
    recipe = small_recipe(network="vit", split_blocks=2)
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors=dict(batches.train_batch(0, 0)))
    made = []
    for replica in (None, 0, 1):
        block = built_blocks(blueprint_of(recipe, batches))[0]
        if replica is not None:
            block.join(Alone(), replica)
        made.append(block.forward(message).features)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])

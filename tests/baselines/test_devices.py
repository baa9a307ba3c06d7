"""What follows for a rival from the devices of its ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from ppll import fork_server
from ppll.baselines import SYSTEMS, EmulatedWork, Layout, RecipeWork, feed, run_baseline
from ppll.baselines.backends import backend_of
from ppll.baselines.feed import Feed
from ppll.baselines.losses import Losses
from ppll.baselines.process import Assignment, _group, _is_aftermath
from ppll.config import Recipe
from ppll.errors import RecipeError
from ppll.message import Message
from ppll.prefetch import Prefetcher
from tests.baselines.test_training import recipe


def devices(*names: str) -> list[torch.device]:
    return [torch.device(name) for name in names]


@pytest.fixture
def with_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)


@pytest.mark.usefixtures("with_nccl")
def test_devices_choose_the_backend() -> None:
    assert backend_of("backprop", devices("cpu")) is None
    assert backend_of("backprop", devices("cuda:0")) is None
    assert backend_of("ddp", devices("cpu", "cpu")) == "gloo"
    assert backend_of("ddp", devices("cuda:1", "cuda:0")) == "nccl"


@pytest.mark.usefixtures("with_nccl")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cuda:0", "cuda:0"), r"ddp would have ranks 0 and 1 on cuda:0, but NCCL takes one rank"),
        (("cuda:0", "cuda:1", "cuda:0", "cuda:1"), "ranks 0 and 2 on cuda:0, ranks 1 and 3 on"),
        (("cuda:0",) * 3, "ranks 0, 1 and 2 on cuda:0"),
        (("cuda:0", "cpu"), "ddp has rank 0 on cuda:0, rank 1 on cpu, but nothing carries"),
    ],
)
def test_ranks_that_cannot_talk_are_named(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        backend_of("ddp", devices(*names))
    assert 'set runtime.devices = "cpu"' in str(caught.value)


def test_torch_without_nccl_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert backend_of("backprop", devices("cuda:0")) is None
    with pytest.raises(RecipeError, match="gpipe on GPUs needs NCCL, which this torch"):
        backend_of("gpipe", devices("cuda:0", "cuda:1"))


def on(*names: str, **train: Any) -> Recipe:
    """The recipe with all ranks on one device, or each on its own."""
    value: object = names[0] if len(names) == 1 else list(names)
    train = {**recipe("vit").train.model_dump(exclude_unset=True), **train}
    return recipe("vit", runtime={"devices": value}, train=train)


@pytest.mark.parametrize(
    ("system", "recipe", "num_gpus", "words"),
    [
        ("ddp", on("cuda"), 1, "ranks 0 and 1 on cuda:0, but NCCL"),
        ("1f1b", on("cuda:1"), 2, "ranks 0 and 1 on cuda:1, but NCCL"),
        ("1f1b", on("cuda:0", "cpu"), 1, "1f1b has rank 0 on cuda:0, rank 1 on cpu"),
        ("ddp", on("cuda"), 0, r"asks this machine for 'cuda'\. Of GPUs it has none"),
        ("ddp", on("cpu", "cpu", "cpu"), 0, "names 3 devices for 2 stages"),
        ("ddp", on("cuda", cuda_graphs=True), 2, "train.cuda_graphs: rivals record no graphs"),
    ],
)
def test_it_is_refused_before_a_process_starts(
    system: str, recipe: Recipe, num_gpus: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(fork_server, "warm_up", lambda: pytest.fail("a process starts"))
    num = 4 if SYSTEMS[system].kind == "pipeline" else 1
    work = RecipeWork(recipe)
    with pytest.raises(RecipeError, match=words):
        run_baseline(system, work, num_ranks=2, num_microbatches=num, num_batches=2)


def test_a_rank_computes_where_the_stage_of_its_number_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    layout = Layout(SYSTEMS["ddp"], 2, 1, 2)
    assert list(RecipeWork(on("cuda")).devices(layout)) == devices("cuda:0", "cuda:1")
    assert list(RecipeWork(on("cpu")).devices(layout)) == devices("cpu", "cpu")
    emulated = EmulatedWork.even(2, forward_s=0.01, backward_s=0.02)
    assert list(emulated.devices(layout)) == devices("cpu", "cpu")


def test_a_rival_may_have_more_ranks_than_the_recipe_has_blocks() -> None:
    work = RecipeWork(on("cpu")).prepared(Layout(SYSTEMS["ddp"], 8, 1, 2))
    assert work.recipe.split.blocks < 8


@pytest.mark.usefixtures("with_nccl")
@pytest.mark.parametrize(
    ("names", "backend", "device_id"),
    [(("cuda:0", "cuda:1"), "nccl", torch.device("cuda:1")), (("cpu", "cpu"), "gloo", None)],
)
def test_ranks_meet_by_what_their_devices_choose(
    names: tuple[str, ...],
    backend: str,
    device_id: torch.device | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv(f"{backend.upper()}_SOCKET_IFNAME", "another")
    met: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda name, **how: met.update(how, name=name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    layout = Layout(SYSTEMS["ddp"], 2, 1, 2)
    assignment = Assignment(RecipeWork(on(*names)), layout, tmp_path, 60.0, interface="eth7")
    with _group(assignment, 1):
        assert (met["name"], met["device_id"], met["rank"]) == (backend, device_id, 1)
        assert os.environ[f"{backend.upper()}_SOCKET_IFNAME"] == "eth7"


def test_batches_come_to_the_device_of_who_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set lies where PPLL's first stage would have it, but only for who reads inputs."""
    homes, inboxes = [], []

    def home_of(_data: object, wanted: str, device: torch.device) -> torch.device:
        homes.append((wanted, str(device)))
        return torch.device("cpu")

    def inbox(messages: Iterator[Message], capacity: int, device: torch.device) -> Prefetcher:
        inboxes.append((capacity, str(device)))
        return Prefetcher(messages, capacity)

    monkeypatch.setattr(feed, "home_of", home_of)
    monkeypatch.setattr(feed, "Prefetcher", inbox)
    work = recipe("vit").with_settings(["runtime.data=device", "runtime.capacity=3"])
    layout = Layout(SYSTEMS["1f1b"], 3, 4, 2)
    for rank in range(3):
        batches = list(Feed(work, layout, rank, torch.device("cuda", rank)).batches())
        read = [(batch.inputs is not None, batch.targets is not None) for batch in batches]
        assert read == [(rank == 0, rank == 2)] * 2
    assert homes == [("device", "cuda:0")]
    assert inboxes == [(3, "cuda:0"), (3, "cuda:2")]


class Checked:
    """A part that takes down what it is asked about."""

    def __init__(self, looks_every: int) -> None:
        self.looks_every = looks_every
        self.asked: list[tuple[float, int]] = []

    def check(self, loss: float, step: int) -> None:
        self.asked.append((loss, step))


@pytest.mark.parametrize(
    ("looks_every", "asked"),
    [
        (1, {1: 1, 2: 2, 3: 3, 4: 4}),
        (3, {1: 0, 2: 0, 3: 3, 4: 3}),
        (9, dict.fromkeys(range(1, 5), 0)),
    ],
)
def test_losses_are_looked_at_as_often_as_is_said(
    looks_every: int, asked: Mapping[int, int]
) -> None:
    part = Checked(looks_every)
    losses = Losses(part)  # type: ignore[arg-type]
    for step, num in asked.items():
        losses.add(torch.tensor(0.5 * step))
        assert len(part.asked) == num
    losses.look()
    losses.look()
    assert part.asked == [(0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4)]
    assert list(losses.values) == [0.5, 1.0, 1.5, 2.0]


def test_what_a_lost_neighbour_does_to_the_others_is_no_first_cause() -> None:
    assert _is_aftermath(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert _is_aftermath(dist.DistBackendError("NCCL error: remote process exited"))
    assert not _is_aftermath(RuntimeError("CUDA error: device-side assert triggered"))

"""Real training by PPLL and its rivals, on networks so small that only the bookkeeping counts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ppll.bench.compare import CompareRow, compare, summary
from ppll.bench.entrants import EndToEnd, Local, Race
from ppll.config import Recipe
from ppll.devices import check_devices
from ppll.errors import Interrupted, RecipeError
from ppll.planning.view import show_comparison
from ppll.trainer import Trainer
from tests.faults import recipe

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def vit(**train: Any) -> Recipe:
    tree = recipe().model_dump(exclude_unset=True)
    tree["train"] |= train
    tree["model"] = {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2}
    tree["data"] |= {"batch_size": 8, "num_train": 48, "validation": 0}
    tree["split"] = {"blocks": 2}
    return Recipe.from_dict(tree)


def run(*systems: str, **options: Any) -> list[CompareRow]:
    options = {"repeats": 1, "num_batches": 5, "warm_up": 2, "accumulate": (2,), **options}
    return compare(vit(), 2, systems, microbatches=(2, 4), **options)


@pytest.mark.slow
def test_ppll_and_one_stage_train_the_same_weights_side_by_side() -> None:
    ballast = torch.ones(600 * 2**18)
    two, parts, one = run("ppll", "sequential", epochs=1)
    assert [(r.system, r.stages, r.microbatches) for r in (two, parts, one)] == [
        ("ppll", 2, 1),
        ("ppll", 2, 2),
        ("sequential", 1, 1),
    ]
    assert two.weights_sha256 == one.weights_sha256 is not None
    assert parts.weights_sha256 not in (None, one.weights_sha256)
    assert two.accuracy == one.accuracy
    assert one.speedups == (1.0,)
    assert two.bytes_sent == parts.bytes_sent == (8 * (5 * 16 * 4 + 8), 0)
    assert one.bytes_sent == (0,)
    assert all(0 < share <= 1 for share in two.busy_fraction or ())
    tree = two.to_dict()
    assert tree["samples_per_second_min"] <= tree["samples_per_second"]
    # One stage, too, has a process of its own.
    assert 2**20 < max(two.peak_memory_bytes + one.peak_memory_bytes) < ballast.nbytes


def test_all_are_timed_on_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival gets as many batches to warm up as PPLL, whose pipeline fills meanwhile."""
    race = Race(vit(), *[None] * 2, 6, 2, 20, 3)  # type: ignore[arg-type]
    asked: dict[str, Any] = {}

    class Asked(Exception):
        """Nothing is to be run."""

    def run_baseline(*_: object, **options: Any) -> None:
        asked.update(options)
        raise Asked

    def trainer(recipe: Recipe, **_: object) -> None:
        asked["max_steps"] = recipe.train.max_steps
        raise Asked

    monkeypatch.setattr("ppll.bench.entrants.run_baseline", run_baseline)
    monkeypatch.setattr("ppll.bench.entrants.Trainer", trainer)
    monkeypatch.setattr("ppll.bench.entrants._bytes_sent", lambda *_: (0,))
    for entrant in (EndToEnd(race, "backprop", 1, 1), Local(race, "sequential", 1, 1)):
        with pytest.raises(Asked):
            entrant.timed()
    filling = 4 * 2 + 1
    assert (asked["warm_up"], asked["num_batches"]) == (3 + filling, 3 + filling + 20)
    assert asked["max_steps"] == 3 + filling + 20 + filling


def test_nobody_saves_while_others_train() -> None:
    settings = ["checkpoint.every_steps=1", "track.tensorboard=true", "train.max_steps=3"]
    race = Race.prepared(vit().with_settings(settings), 2, 5, 2)
    assert race.recipe.checkpoint.every_steps is None
    assert not race.recipe.track.tensorboard
    assert race.recipe.train.max_steps is None


def test_rivals_stand_beside_it_and_what_they_cannot_do_is_said() -> None:
    notes: list[str] = []
    rows = run("backprop", "1f1b", num_batches=3, epochs=1, noted=notes.append)
    assert [(r.system, r.stages, r.microbatches) for r in rows] == [
        ("backprop", 1, 1),
        ("1f1b", 2, 2),
        ("1f1b", 2, 4),
    ]
    assert all(row.accuracy is not None and row.rates[0] > 0 for row in rows)
    assert [row.devices for row in rows] == [("cpu",) * row.stages for row in rows]
    assert notes == []


def test_what_cannot_be_is_left_out_and_said() -> None:
    notes: list[str] = []
    options: dict[str, Any] = {"repeats": 1, "num_batches": 1, "noted": notes.append}
    systems = ["1f1b", "interleaved", "backprop"]
    # A number of steps would end training early, and rivals can do no more than the recipe says.
    rows = compare(vit(max_steps=2), 4, systems, microbatches=(2,), epochs=1, **options)
    assert [row.system for row in rows] == ["backprop"]
    assert notes[0].startswith("1f1b with 2 micro-batches is left out: 1f1b needs at least as many")
    assert notes[1].startswith("interleaved with 2 micro-batches is left out: ")
    with pytest.raises(RecipeError, match="nothing is left to compare"):
        compare(vit(), 2, ["1f1b"], microbatches=(1,), **options)
    assert notes[2].startswith("1f1b is left out")


def test_pieces_of_less_than_a_sample_are_left_out() -> None:
    notes: list[str] = []
    (row,) = run("ppll", accumulate=(9,), noted=notes.append)
    assert row.microbatches == 1
    assert "ppll with 9 messages is left out: train.accumulate = 9 parts" in notes[0]


def test_cuts_are_not_moved_silently() -> None:
    cut = vit().with_settings(["split.cuts=[2]"])
    with pytest.raises(RecipeError, match=r"makes 2 blocks, but split\.blocks = 3"):
        compare(cut, 3, ["ppll"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"systems": ["ppl"]}, "Did you mean 'ppll'"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"num_batches": 0}, "batches must be at least 1"),
        ({"num_stages": 99}, "99"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"recipe": vit(), "num_stages": 2, "systems": ["ppll"], **arguments}
    with pytest.raises(Exception, match=message) as caught:
        compare(**arguments)
    assert type(caught.value).__name__ in ("RecipeError", "ModelError")


def row(system: str, stages: int, rate: float, pieces: int = 1, **more: Any) -> CompareRow:
    devices = more.pop("devices", ("cpu",) * stages)
    return CompareRow(system, stages, pieces, devices, (rate,), (1,), (0,), **more)


def test_the_summary_says_who_is_ahead_and_by_how_much() -> None:
    rows = [
        row("ppll", 2, 180.0, speedups=(1.8,), busy_fraction=(1.0, 0.9)),
        row("ppll", 2, 144.0, 2, speedups=(1.44,)),
        row("sequential", 1, 100.0),
        row("backprop", 1, 110.0),
        row("1f1b", 2, 200.0, 2),
        row("gpipe", 2, 100.0, 2),
    ]
    assert summary(rows) == (
        "ppll trains 1.80 times as fast as one stage. "
        "Its stages are busy 100% and 90% of the time, which makes 1.90 at most; "
        "0.95 of that is left where all compute at once. "
        "It is 0.90 times as fast as its best rival, 1f1b with 2 micro-batches. "
        "On one device local learning takes 1.10 times as long as backprop: auxiliary networks, "
        "less what short backward passes save. "
        "The best pipeline, 1f1b with 2 micro-batches, trains 1.82 times as fast as backprop on "
        "one device: its bubble, small pieces and transport take the rest. "
        "In 2 pieces a batch PPLL has 0.80 of its speed in 1. "
        "In 2 pieces a batch its fullest rank takes 0 MiB, that of 1f1b 0 MiB."
    )
    assert summary(rows[2:]) == ""


def test_what_differs_by_less_than_the_repeats_is_noise() -> None:
    ours, rival = row("ppll", 2, 0.0), row("ddp", 2, 0.0)
    ours = replace(ours, rates=(99.0, 103.0, 102.0))
    rival = replace(rival, rates=(100.0, 100.0, 100.0))
    words = "as fast as its best rival, ddp, within the noise: 1.02 times (0.99 to 1.03)."
    assert summary([ours, rival]) == f"It is {words}"


GPUS = ("cuda:0", "cuda:1")


def test_of_gpus_the_summary_says_only_what_was_seen() -> None:
    """Hosts do not wait for GPUs, so busy shares are left out; launches count beside auxiliary
    networks; memory is the GPU's."""
    rows = [
        row("ppll", 2, 180.0, speedups=(1.8,), devices=GPUS),
        row("ppll", 2, 144.0, 2, speedups=(1.44,), devices=GPUS),
        row("sequential", 1, 100.0, devices=GPUS[:1]),
        row("backprop", 1, 200.0, devices=GPUS[:1]),
        row("1f1b", 2, 90.0, 2, devices=GPUS),
    ]
    assert summary(rows) == (
        "ppll trains 1.80 times as fast as one stage. "
        "It is 0.90 times as fast as its best rival, backprop. "
        "On one device local learning takes 2.00 times as long as backprop. "
        "The best pipeline, 1f1b with 2 micro-batches, trains 0.45 times as fast as backprop on "
        "one device: its bubble, small pieces and transport take the rest. "
        "In 2 pieces a batch PPLL has 0.80 of its speed in 1. "
        "In 2 pieces a batch its fullest rank takes 0 MiB of its GPU, that of 1f1b 0 MiB."
    )


def test_stages_that_share_a_gpu_are_not_passed_off_as_several() -> None:
    shared = row("ppll", 2, 180.0, speedups=(1.8,), devices=("cuda:0", "cuda:0"))
    assert "as one stage. Of its stages, 2 share 1 GPU(s)." in summary([shared])


def test_a_table_says_where_each_ran_and_compares_memory_of_a_kind() -> None:
    rows = [row("ppll", 2, 1.0, devices=GPUS), row("backprop", 1, 1.0, devices=GPUS[:1])]
    text = shown(rows)
    assert "peak on GPU" in text
    assert "cuda:0,1" in text
    assert "peak memory" in shown([row("ddp", 2, 1.0)])
    mixed = shown([row("ppll", 3, 1.0, devices=("cuda:0", "cpu", "cuda:1"))])
    assert "cpu cuda:0,1" in mixed
    assert mixed.count("MiB") == 1  # what is sent; not the largest of different memories


def shown(rows: list[CompareRow]) -> str:
    console = Console(width=120, file=io.StringIO())
    show_comparison(console, rows)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_rivals_that_cannot_share_a_gpu_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one GPU there is still PPLL, which can, beside backprop."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    race = Race(gpu_recipe("cuda"), *[None] * 2, 3, 2, 3, 1)  # type: ignore[arg-type]
    notes: list[str] = []
    rivals = race.entrants(["backprop", "ddp"], (2,), (), notes.append)
    assert [(r.system, r.devices) for r in rivals] == [("backprop", ("cuda:0",))]
    assert notes[0].startswith("ddp is left out: ddp would have ranks 0 and 1 on cuda:0, but NCCL")


def test_whoever_has_fewer_processes_takes_the_first_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    race = Race(gpu_recipe(["cuda:1", "cuda:0"]), *[None] * 2, 3, 2, 3, 1)  # type: ignore[arg-type]
    assert EndToEnd(race, "ddp", 2, 1).devices == ("cuda:1", "cuda:0")
    assert EndToEnd(race, "backprop", 1, 1).devices == ("cuda:1",)
    check_devices(race.recipe_on(1))


def gpu_recipe(devices: object) -> Recipe:
    return Recipe.from_dict({**vit().model_dump(), "runtime": {"devices": devices, "stages": 2}})


def test_devices_that_are_not_there_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RecipeError, match=r"asks this machine for 'cuda'\. Of GPUs it has none"):
        compare(recipe(devices="cuda"), 2, ("ddp",))


def test_an_interrupted_comparison_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> None:
        raise Interrupted("interrupted at step 1; saved in /tmp/ppll-compare-1/run")

    monkeypatch.setattr(Trainer, "fit", interrupted)
    race = Race.prepared(vit(), 2, 1, 1)
    for carry_out in (lambda e: e.timed(), lambda e: e.accuracy(1)):
        with pytest.raises(Interrupted, match=r"^interrupted; a comparison keeps nothing\.$"):
            carry_out(Local(race, "ppll", 2, 1))

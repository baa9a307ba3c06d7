"""Blocks with replicas of their own: each message cut among them and joined again."""

from __future__ import annotations

import itertools
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import ppll
from ppll.config import Recipe
from ppll.errors import DataError, Interrupted, RecipeError, WorkerError
from ppll.mesh import Mesh
from ppll.placement import mesh_of, mesh_of_size, place_alike
from ppll.slot_layouts import Layouts
from ppll.testing import FAULT_VARIABLE, Fault
from tests.interleaving import MadeUpBatches, blueprint_of, small_recipe
from tests.test_replicas import TOLERANCE, Interrupting, metrics, private_cache, recipe, weights

__all__ = ["private_cache"]

processes = pytest.mark.processes
slow = pytest.mark.slow


def fit(out: Path, replicas: Any, stages: int, network: str = "vit", **others: Any) -> ppll.Result:
    sections = {k: dict(v) for k, v in others.items()}
    train = {"epochs": 3, "seed": 5, "replicas": replicas, **sections.pop("train", {})}
    blocks = {"blocks": 2 if isinstance(replicas, int) else len(replicas)}
    split = {**blocks, **sections.pop("split", {})}
    made = recipe(1, network, stages, train=train, split=split, **sections)
    return ppll.Trainer(made, out=out).fit()


# --- where processes stand -----------------------------------------------------------------------


def test_blocks_of_a_stage_have_equally_many_replicas() -> None:
    assert [list(b) for b in place_alike([1, 4, 4, 1], 3)] == [[0], [1, 2], [3]]
    assert [list(b) for b in place_alike([1, 4, 4, 1], 4)] == [[0], [1], [2], [3]]
    assert [list(b) for b in place_alike([2, 2, 2], 1)] == [[0, 1, 2]]


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_other_numbers_of_stages_are_refused(num_stages: int) -> None:
    with pytest.raises(RecipeError, match=r"\[1, 4, 4, 1\] on .* ask for 3 to 4 stages"):
        place_alike([1, 4, 4, 1], num_stages)


def test_the_first_replica_of_every_stage_comes_first() -> None:
    mesh = mesh_of([1, 4, 2], 3)
    assert mesh == Mesh((1, 4, 2))
    assert [(mesh.stage(r), mesh.replica(r)) for r in range(mesh.size)] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (1, 1),
        (2, 1),
        (1, 2),
        (1, 3),
    ]
    assert mesh.ranks(1) == [1, 3, 5, 6]
    assert mesh.place(6) == "stage 1 of replica 3"
    assert all(mesh.rank(mesh.replica(r), mesh.stage(r)) == r for r in range(mesh.size))


def test_processes_make_stages() -> None:
    assert mesh_of_size([1, 2, 2, 1], 6) == Mesh((1, 2, 2, 1))
    assert mesh_of_size([1, 2, 2, 1], 4) == Mesh((1, 2, 1))
    assert mesh_of_size([1, 2, 2, 1], 5) is None
    assert mesh_of_size(3, 6) == Mesh((3, 3))
    assert mesh_of_size(3, 7) is None


# --- whole runs ----------------------------------------------------------------------------------


@processes
@pytest.mark.parametrize(
    ("replicas", "others"),
    [
        ([1, 2], {}),
        pytest.param([2, 1], {}, marks=slow),
        pytest.param([1, 3, 1], {"method": {"name": "sgr"}}, marks=slow),
        pytest.param([2, 1], {"method": {"name": "contsup"}}, marks=slow),
        pytest.param([2, 4], {"method": {"name": "man"}}, marks=slow),
        pytest.param([4, 2, 1], {"method": {"name": "man"}}, marks=slow),
        pytest.param([1, 2, 1], {"train": {"accumulate": 2, "ema": 0.9}}, marks=slow),
        pytest.param([1, 2, 1], {"data": {"mixup": 0.4}}, marks=slow),
        pytest.param([2, 1], {"split": {"features_dtype": "bf16"}}, marks=slow),
        pytest.param([1, 2], {"split": {"features_dtype": "int8"}}, marks=slow),
        pytest.param([2, 1], {"split": {"features_dtype": "int8"}}, marks=slow),
    ],
    ids=str,
)
def test_they_learn_as_one(replicas: list[int], others: dict[str, Any], tmp_path: Path) -> None:
    """Up to the order of sums; here no batch norm, whose statistics are those of a shard."""
    num = len(replicas)
    one = fit(tmp_path / "one", [1] * num, 1, **others)
    found = fit(tmp_path / "more", replicas, num, **others)
    theirs, mine = weights(tmp_path / "one"), weights(tmp_path / "more")
    off = max(float((theirs[name].double() - mine[name].double()).abs().max()) for name in theirs)
    assert off < TOLERANCE * (10 if "split" in others else 1)
    assert found.num_replicas == tuple(replicas)
    assert found.weights_sha256 != one.weights_sha256  # else nothing was shared
    for mine_row, row in zip(metrics(tmp_path / "more"), metrics(tmp_path / "one"), strict=True):
        assert mine_row["samples"] == row["samples"]
        assert mine_row["loss"] == pytest.approx(row["loss"], rel=1e-3)
        assert mine_row["accuracy"] == pytest.approx(row["accuracy"], abs=0.11)


@processes
@slow
@pytest.mark.parametrize("replicas", [[2, 1, 1], [1, 1, 2], [1, 2, 2]], ids=str)
def test_the_last_block_s_parameters_come_to_all_replicas(
    replicas: list[int], tmp_path: Path
) -> None:
    """Of a language model whose blocks read the last one's readout. AdamW makes much of a small
    gradient's last bits, so the outcome is compared."""
    found = []
    for each in (1, replicas):
        tree: dict[str, Any] = {
            "data": {"name": "stdlib-text", "length": 16, "batch_size": 8, "train_limit": 64},
            "model": {"name": "gpt", "width": 16, "depth": 3, "heads": 2},
            "split": {"blocks": 3},
            "method": {"name": "solo"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "train": {"epochs": 1, "replicas": each},
            "runtime": {"stages": 1 if each == 1 else 3},
        }
        found.append(ppll.Trainer(tree, out=tmp_path / str(each)).fit())
    assert found[0].exit_perplexity == pytest.approx(found[1].exit_perplexity, rel=1e-6)
    assert found[0].weights_sha256 != found[1].weights_sha256


@pytest.mark.slow
@processes
def test_the_same_bits_on_any_number_of_stages(tmp_path: Path) -> None:
    """With batch norm, and resumed on another number after a replica that saves nothing failed."""
    replicas = [1, 2, 2]
    found = fit(tmp_path / "2", replicas, 2, "resnet")
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(4, 10).to_environment()
        patch.setenv(FAULT_VARIABLE, fault[FAULT_VARIABLE])
        pattern = r"rank 4 \(stage 2 of replica 1, block 2\) failed at step 10"
        with pytest.raises(WorkerError, match=pattern):
            fit(tmp_path / "3", replicas, 3, "resnet")
    train = {"epochs": 3, "seed": 5, "replicas": replicas}
    again = recipe(1, "resnet", 2, train=train, split={"blocks": 3})
    resumed = ppll.Trainer(again, out=tmp_path / "3", resume=True).fit()
    assert resumed.weights_sha256 == found.weights_sha256


@processes
@slow
def test_one_number_a_block_is_the_same_as_one_for_all(tmp_path: Path) -> None:
    for stages in (1, 2):
        found = [fit(tmp_path / f"{stages}-{r}", r, stages, "resnet") for r in ([2, 2], 2)]
        assert found[0].weights_sha256 == found[1].weights_sha256


@processes
@slow
def test_an_evaluation_needs_no_replicas(tmp_path: Path) -> None:
    found = fit(tmp_path / "run", [1, 2, 1], 3, "resnet")
    for stages in (1, 3):
        again = ppll.evaluate(tmp_path / "run", stages=stages)
        assert again.exit_accuracy == found.exit_accuracy
        assert again.weights_sha256 == found.weights_sha256


@processes
@slow
@pytest.mark.parametrize("replicas", [[1, 2], [2, 1]])
def test_an_interrupted_run_goes_on_to_the_same_bits(replicas: list[int], tmp_path: Path) -> None:
    out, train = tmp_path / "run", {"epochs": 60, "seed": 5, "replicas": replicas}
    whole = fit(tmp_path / "whole", replicas, 2, train=train)
    made = recipe(1, stages=2, train=train)
    with pytest.raises(Interrupted, match="interrupted at step"):
        ppll.Trainer(made, out=out, callbacks=[Interrupting()]).fit()
    again = ppll.Trainer(made, out=out, resume=True).fit()
    assert again.weights_sha256 == whole.weights_sha256


@processes
@slow
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_whoever_dies_is_named(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(rank, 6, "FORWARD", "kill").to_environment()
    monkeypatch.setenv(FAULT_VARIABLE, fault[FAULT_VARIABLE])
    place = ["stage 0 of replica 0", "stage 1 of replica 0", "stage 2 of replica 0"]
    place += ["stage 1 of replica 1"]
    with pytest.raises(WorkerError, match=rf"rank {rank} \({place[rank]}.*killed by SIGKILL"):
        fit(tmp_path / "run", [1, 2, 1], 3)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        ([1, 2, 1], r"\[1, 2, 1\] has 3 number\(s\) for 2 blocks"),
        ([2, 3], "2 of block 0 and 3 of block 1 cannot share"),
        ([1, 11], r"\[1, 11\] share data.batch_size = 10 samples"),
        ([1, 0], r"^train.replicas.1: Input should be greater than or equal to 1 \(found 0\)"),
        ([1, 33], r"^train.replicas.1: Input should be less than or equal to 32"),
        ([1, "a"], r"^train.replicas.1: Input should be a valid integer"),
        ([], r"^train.replicas: Tuple should have at least 1 item"),
        (0, r"^train.replicas: Input should be greater than or equal to 1 \(found 0\)"),
    ],
)
def test_numbers_that_cannot_be_are_refused(replicas: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(1, train={"replicas": replicas})


def test_parts_that_would_be_too_small_to_share_are_refused() -> None:
    """Two shards of three travel in parts of one and two; joined, there are two samples for
    three."""
    train = {"replicas": [2, 1, 3], "accumulate": 2}
    with pytest.raises(RecipeError, match="2 of block 0 do not divide 3, the largest number"):
        recipe(1, data={"batch_size": 6}, split={"blocks": 3}, train=train)


@example(replicas=[2], accumulate=2, batch_size=12, last=7)  # one part of four beside three
@given(
    replicas=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=5),
    accumulate=st.integers(1, 4),
    batch_size=st.integers(1, 60),
    last=st.integers(1, 60),
)
def test_no_message_is_empty_or_larger_than_announced(
    replicas: list[int], accumulate: int, batch_size: int, last: int
) -> None:
    """Whatever a recipe may ask for, also of a last batch that is short."""
    train = {"replicas": replicas, "accumulate": accumulate}
    try:
        made = Recipe.from_dict(
            {"data": {"batch_size": batch_size}, "split": {"blocks": len(replicas)}, "train": train}
        )
    except RecipeError:
        assume(False)
    for num_in_batch in {batch_size, min(batch_size, max(last, max(replicas)))}:
        smallest = num_in_batch // max(replicas) // made.num_parts(num_in_batch)
        for block, sizes in enumerate(sizes_of(made, num_in_batch)):
            assert max(sizes) <= made.largest_messages[block]
            assert min(sizes) >= smallest >= 1


def sizes_of(made: Recipe, num_in_batch: int) -> list[list[int]]:
    """Samples of every message of a batch, block by block."""
    before, *others = made.block_replicas
    num_parts = made.num_parts(num_in_batch)
    shards = [cut(num_in_batch, before)[i] for i in range(before)]
    found = [[cut(shard, num_parts)[part] for part in range(num_parts)] for shard in shards]
    rows = [[size for shard in found for size in shard]]
    for num in others:
        if num > before:
            found = [[cut(size, num // before)[i] for size in shard] for shard in found
                     for i in range(num // before)]  # fmt: skip
        else:
            joins = before // num
            found = [[sum(sizes) for sizes in zip(*found[i * joins : (i + 1) * joins], strict=True)]
                     for i in range(num)]  # fmt: skip
        rows.append([size for shard in found for size in shard])
        before = num
    return rows


def cut(num: int, parts: int) -> list[int]:
    bounds = [num * i // parts for i in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]


def test_one_stage_cannot_hold_blocks_with_unlike_replicas(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="ask for 2 stages"):
        ppll.Trainer(recipe(1, train={"replicas": [1, 2]}), out=tmp_path / "run")


def test_backprop_has_no_blocks_to_tell_apart(tmp_path: Path) -> None:
    made = recipe(1, train={"replicas": [1, 2]}, method={"name": "backprop"}, stages=2)
    made = Recipe.from_dict({**made.model_dump(exclude_none=True), "method": {"name": "backprop"}})
    with pytest.raises(RecipeError, match="one number a block, but method 'backprop'"):
        ppll.Trainer(made, out=tmp_path / "run")


def test_an_empty_shard_is_refused(tmp_path: Path) -> None:
    made = recipe(1, stages=2, train={"replicas": [1, 6]}, data={"num_train": 25})
    with pytest.raises(DataError, match="too few for 6 replicas"):
        ppll.Trainer(made, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("replicas", "num_samples"), [([1, 1], 6), ([1, 3], 2), ([3, 1], 2), ([3, 3], 2)]
)
def test_slots_hold_the_shards_of_the_stage_that_has_more(
    replicas: list[int], num_samples: int
) -> None:
    batches = MadeUpBatches((6,))
    made = small_recipe(split_blocks=2, replicas=replicas)
    made = made.with_settings(["data.eval_batch_size=1"])
    blueprint = blueprint_of(made, batches)
    layouts = Layouts(SimpleNamespace(recipe=made, facts=batches.facts), blueprint)  # type: ignore[arg-type]
    assert layouts.features(1).field_bytes["targets"] == num_samples * 8
    each = prod(blueprint.input_shape(1)) * 4
    assert layouts.features(1).field_bytes["features"] == num_samples * each

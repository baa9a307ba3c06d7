"""What may change between two starts of a run."""

from __future__ import annotations

from typing import Any

import pytest

from ppll.checkpoints.resume import as_saved, changes, refuse_changes, training_sections
from ppll.config import Recipe
from ppll.errors import RecipeError

BASE = {"split": {"blocks": 3}, "optimizer": {"lr": 0.1}, "model": {"name": "resnet", "depth": 20}}


def changed(*settings: str, base: dict[str, Any] = BASE) -> list[str]:
    before = Recipe.from_dict(base)
    now = before.with_settings(settings)
    return [c.key for c in changes(training_sections(before), training_sections(now))]


@pytest.mark.parametrize(
    "setting",
    [
        "split.cuts=[3, 6]",
        "method.name=greedy",
        "method.auxiliary=linear",
        "data.batch_size=7",
        "data.crop=2",
        "data.test_limit=9",
        "model.depth=32",
        "model.width=8",
        "optimizer.lr=0.2",
        "optimizer.blocks.0.lr=0.2",
        "schedule.blocks.0.name=constant",
        "schedule.name=constant",
        "train.seed=1",
        "train.precision=bf16",
        "train.threads_per_stage=2",
    ],
)
def test_what_alters_the_training_is_named(setting: str) -> None:
    key = setting.partition("=")[0]
    assert changed(setting) == [
        key.partition(".blocks.0")[0] + ".blocks" if "blocks.0" in key else key
    ]


@pytest.mark.parametrize(
    "setting",
    [
        "runtime.stages=3",
        "runtime.capacity=1",
        "checkpoint.keep=9",
        "data.root=/elsewhere",
        "data.eval_batch_size=9",
        "train.evaluate_every=0",
    ],
)
def test_what_does_not_goes_through(setting: str) -> None:
    assert changed(setting) == []


def test_a_number_for_every_block_may_be_one_for_all() -> None:
    base = BASE | {"train": {"replicas": 2}}
    assert changed("train.replicas=[2, 2, 2]", base=base) == []
    assert changed("train.replicas=[1, 2, 2]", base=base) == ["train.replicas"]


def test_an_option_that_is_gone_is_a_change() -> None:
    before, now = (Recipe.from_dict({"model": m}) for m in ({"name": "vit", "depth": 3}, {}))
    found = changes(training_sections(before), training_sections(now))
    assert [(c.key, c.before, c.now) for c in found] == [
        ("model.name", "vit", "resnet32"),
        ("model.depth", 3, None),
    ]


def test_a_key_that_an_older_manifest_lacks_had_its_default() -> None:
    before = training_sections(Recipe())
    del before["train"]["label_smoothing"]
    assert changes(before, training_sections(Recipe())) == []


def found(*settings: str):
    before = Recipe()
    now = before.with_settings(settings)
    return changes(training_sections(before), training_sections(now))


def test_changes_are_refused_unless_they_are_allowed_by_key_or_section() -> None:
    both = found("train.seed=3", "split.blocks=2")
    with pytest.raises(RecipeError) as caught:
        refuse_changes(both, [], length_matters=False)
    assert "split.blocks (was 4, is 2)" in str(caught.value)
    assert "--allow-change split.blocks --allow-change train.seed" in str(caught.value)
    with pytest.raises(RecipeError, match=r"train\.seed \(was 0, is 3\)") as caught:
        refuse_changes(both, ["split.blocks"], length_matters=False)
    assert "split.blocks" not in str(caught.value)
    assert refuse_changes(both, ["split", "train.seed"], length_matters=False) == both


def test_a_longer_run_is_refused_where_the_schedule_knows_its_end() -> None:
    longer = found("train.epochs=20")
    assert refuse_changes(longer, [], length_matters=False) == []
    with pytest.raises(RecipeError, match="cosine schedule ends with the run"):
        refuse_changes(longer, [], length_matters=True)
    assert refuse_changes(longer, ["train.epochs"], length_matters=True) == longer


def test_a_key_that_does_not_exist_cannot_be_allowed() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'split\.blocks'"):
        refuse_changes([], ["split.block"], length_matters=False)


@pytest.mark.parametrize(
    ("before", "since"),
    [
        ((), ("train.replicas=2", "runtime.sharding=fsdp")),
        ((), ("train.cuda_graphs=true", "runtime.concurrent_blocks=true")),
        (("train.accumulate=8",), ("train.accumulate=1", "data.batch_size=4")),
        (("train.replicas=[1, 2, 2]",), ("train.replicas=1", "data.eval_batch_size=5")),
        (("train.cuda_graphs=true",), ("train.cuda_graphs=false",)),
        (("train.compile=true",), ("train.compile=false",)),
    ],
)
def test_a_checkpoint_is_read_whatever_the_run_went_on_with(
    before: tuple[str, ...], since: tuple[str, ...]
) -> None:
    first = Recipe.from_dict(BASE).with_settings(before)
    now = first.with_settings([*since, "data.root=/elsewhere", "train.label_smoothing=0.1"])
    read = as_saved(now, training_sections(first))
    assert read.eval_batch_size == first.eval_batch_size
    assert read.data.root == now.data.root
    alone = {"replicas": 1, "accumulate": 1, "compile": False, "cuda_graphs": False}
    assert read.train == first.train.model_copy(update=alone)
    assert (read.model, read.split) == (first.model, first.split)
    assert not read.has_processes

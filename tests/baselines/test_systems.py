"""What a rival is, and what it cannot do, before any process starts."""

from __future__ import annotations

from typing import Any

import pytest

from ppll.baselines import SYSTEMS, EmulatedWork, Layout, RecipeWork, run_baseline, system_named
from ppll.config import Recipe
from ppll.errors import RecipeError

EVEN = {"forward_s": 0.01, "backward_s": 0.02}


def layout(name: str, num_ranks: int, num_microbatches: int = 4) -> Layout:
    return Layout(SYSTEMS[name], num_ranks, num_microbatches, num_batches=3)


def test_chunks_lie_in_loops_or_in_a_v() -> None:
    assert [layout("gpipe", 3).chunks_of(rank) for rank in range(3)] == [(0,), (1,), (2,)]
    assert [layout("interleaved", 2).chunks_of(rank) for rank in range(2)] == [(0, 2), (1, 3)]
    assert [layout("zero-bubble-v", 2).chunks_of(rank) for rank in range(2)] == [(0, 3), (1, 2)]


def test_who_reads_what() -> None:
    loops, v = layout("zero-bubble", 2), layout("zero-bubble-v", 2)
    assert [loops.reads_inputs(rank) for rank in range(2)] == [True, False]
    assert [loops.reads_targets(rank) for rank in range(2)] == [False, True]
    assert [v.reads_inputs(rank) for rank in range(2)] == [True, False]
    assert [v.reads_targets(rank) for rank in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("name", "num_ranks", "num_microbatches", "words"),
    [
        ("backprop", 2, 1, "runs on one rank, found 2"),
        ("backprop", 1, 2, "takes a batch whole, found 2"),
        ("ddp", 1, 1, "at least 2 ranks, found 1"),
        ("gpipe", 1, 4, "at least 2 ranks, found 1"),
        ("gpipe", 2, 0, "at least 1 micro-batch, found 0"),
        ("1f1b", 4, 3, "at least as many micro-batches as ranks, found 3 for 4"),
        ("interleaved", 4, 9, "found 9: ask for 8 or 12"),
        ("zero-bubble", 4, 13, "found 13: ask for 12 or 16"),
    ],
)
def test_a_layout_that_cannot_be(
    name: str, num_ranks: int, num_microbatches: int, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        layout(name, num_ranks, num_microbatches)


@pytest.mark.parametrize(("num_batches", "warm_up"), [(0, 0), (3, 3), (3, -1)])
def test_some_batch_must_be_timed(num_batches: int, warm_up: int) -> None:
    with pytest.raises(RecipeError, match="left untimed"):
        Layout(SYSTEMS["gpipe"], 2, 2, num_batches, warm_up)


@pytest.mark.parametrize("system", ["interleaved", "zero-bubble"])
def test_rounds_may_be_shorter_or_longer_than_the_ranks(system: str) -> None:
    """As torch has it: rounds that are alike, one where there are fewer than twice the ranks."""
    for count in (2, 4, 6, 7, 8, 10):
        assert Layout(system_named(system), 4, count, 1).num_microbatches == count


def test_an_unknown_system_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'interleaved'"):
        system_named("interleave")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forward_s": (-1.0, 0.0)}, "forward_s must be finite and not negative, found -1"),
        ({"backward_s": (float("nan"), 0.0)}, "backward_s must be finite"),
        ({"update_s": (0.0,)}, "update_s has 1 values, but forward_s has 2"),
        ({"forward_s": ()}, "forward_s has 0 values"),
        ({"weight_share": 1.5}, "share from 0 to 1, found 1.5"),
    ],
)
def test_emulated_times_that_cannot_be(change: dict[str, Any], words: str) -> None:
    rows: dict[str, Any] = {
        "forward_s": (0.0, 0.0),
        "backward_s": (0.0, 0.0),
        "update_s": (0.0, 0.0),
        "payload_bytes": (4, 4),
        "parameter_bytes": (0, 0),
    }
    with pytest.raises(RecipeError, match=words):
        EmulatedWork(**{**rows, **change})


def test_every_chunk_needs_a_place() -> None:
    with pytest.raises(RecipeError, match="runs 4 chunks, found times of 2"):
        EmulatedWork.even(2, **EVEN).prepared(layout("interleaved", 2))


def recipe(**sections: dict[str, Any]) -> Recipe:
    data = {"name": "synthetic", "shape": [1, 8, 8], "num_train": 50, "num_test": 10}
    model = {"name": "vit", "patch_size": 4, "width": 8, "depth": 3, "heads": 2}
    tree = {"data": {**data, "batch_size": 8}, "model": model, "train": {"epochs": 2}}
    return Recipe.from_dict({**tree, **sections})


@pytest.mark.parametrize(
    ("system", "num_ranks", "num_microbatches", "cuts", "num_batches", "words"),
    [
        ("gpipe", 2, 3, None, 2, "batch_size = 8 does not divide into 3 micro-batches"),
        ("ddp", 3, 1, None, 2, "batch_size = 8 does not divide into 3 ranks"),
        ("gpipe", 4, 4, None, 2, "needs 4 chunks, but there are only 3 layers to deal"),
        ("interleaved", 2, 4, None, 2, "only 3 layers to deal: ask for at most 1 ranks"),
        ("gpipe", 2, 4, (2, 3), 2, "needs 1 ascending cuts from 1 to 4, found \\[2, 3\\]"),
        ("gpipe", 2, 4, (5,), 2, "ascending cuts from 1 to 4, found \\[5\\]"),
        ("gpipe", 2, 4, None, 7, "ends in a batch of fewer than 8"),
        ("backprop", 1, 1, None, 15, "trains on 14 batches, found 15"),
    ],
)
def test_a_recipe_that_a_rival_cannot_train(
    system: str,
    num_ranks: int,
    num_microbatches: int,
    cuts: tuple[int, ...] | None,
    num_batches: int,
    words: str,
) -> None:
    with pytest.raises(RecipeError, match=words):
        run_baseline(
            system,
            RecipeWork(recipe(), cuts),
            num_ranks=num_ranks,
            num_microbatches=num_microbatches,
            num_batches=num_batches,
        )


@pytest.mark.parametrize(("key", "value"), [("on_nonfinite", "skip"), ("ema", 0.9)])
def test_what_a_rival_cannot_do_is_refused(key: str, value: object) -> None:
    """Its ranks cannot skip an update together, and keep no averages."""
    work = RecipeWork(recipe(train={key: value}))
    with pytest.raises(RecipeError, match=key):
        run_baseline("backprop", work, num_batches=1)

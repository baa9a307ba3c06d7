"""Real training by PPLL and its rivals, on networks so small that only the bookkeeping counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ppll.bench.compare import CompareRow, compare, summary
from ppll.config import Recipe
from ppll.errors import RecipeError
from tests.faults import recipe

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))


def vit() -> Recipe:
    tree = recipe().model_dump(exclude_unset=True)
    tree["model"] = {"name": "vit", "patch_size": 4, "width": 16, "depth": 4, "heads": 2}
    tree["data"] |= {"batch_size": 8, "num_train": 48, "validation": 0}
    tree["split"] = {"blocks": 2}
    return Recipe.from_dict(tree)


def run(*systems: str, **options: Any) -> list[CompareRow]:
    options = {"repeats": 1, "num_batches": 300, "warm_up": 2, "accumulate": (2,), **options}
    return compare(vit(), 2, systems, microbatches=(2, 4), **options)


def test_ppll_and_one_stage_train_the_same_weights_side_by_side() -> None:
    two, parts, one = run("ppll", "sequential", epochs=1)
    assert [(r.system, r.stages, r.microbatches) for r in (two, parts, one)] == [
        ("ppll", 2, 1),
        ("ppll", 2, 2),
        ("sequential", 1, 1),
    ]
    # Runs differ in length, as pipelines fill and drain.
    assert two.weights_sha256 is not None
    assert two.accuracy == one.accuracy
    assert one.speedups == (1.0,)
    assert two.bytes_sent == parts.bytes_sent == (8 * (5 * 16 * 4 + 8), 0)
    assert one.bytes_sent == (0,)
    assert all(0 < share <= 1 for share in two.busy_fraction or ())
    tree = two.to_dict()
    assert tree["samples_per_second_min"] <= tree["samples_per_second"]
    assert min(two.peak_memory_bytes) > 2**20


def test_rivals_stand_beside_it_and_what_they_cannot_do_is_said() -> None:
    notes: list[str] = []
    rows = run("backprop", "1f1b", "zero-bubble", num_batches=3, epochs=1, noted=notes.append)
    assert [(r.system, r.stages, r.microbatches) for r in rows] == [
        ("backprop", 1, 1),
        ("1f1b", 2, 2),
        ("1f1b", 2, 4),
        ("zero-bubble", 2, 2),
        ("zero-bubble", 2, 4),
    ]
    assert all(row.accuracy is not None and row.rates[0] > 0 for row in rows)
    assert notes == []
    compare(vit(), 2, ["1f1b"], microbatches=(1,), repeats=1, num_batches=1, noted=notes.append)
    assert "1f1b with 1 micro-batches is left out" in notes[0]


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
    return CompareRow(system, stages, pieces, (rate,), (1,), (0,), **more)


def test_the_summary_says_who_is_ahead_and_by_how_much() -> None:
    rows = [
        row("ppll", 2, 180.0, speedups=(1.8,), busy_fraction=(1.0, 0.9)),
        row("ppll", 2, 150.0, 2, speedups=(1.5,)),
        row("1f1b", 2, 200.0, 8),
        row("gpipe", 2, 100.0, 8),
    ]
    assert summary(rows) == (
        "ppll trains 1.80 times as fast as one stage. Its stages are busy 100% 90% of the time. "
        "It is 0.90 times as fast as the best rival, 1f1b with 8 micro-batches."
    )
    assert summary(rows[2:]) == ""


def test_a_comparison_needs_enough_to_see() -> None:
    with pytest.raises(RecipeError, match="too few batches were seen"):
        run("sequential", num_batches=1, warm_up=1)

"""What do models of other libraries, our own and yours lose and gain by local learning?

For a small network of each family, backprop beside four blocks (``dgl``) with the same data,
optimizer and number of steps; nothing was tuned for either. In three parts:

    python -m benchmarks.families.run accuracy --json benchmarks/families/accuracy.json
    python -m benchmarks.families.run memory --json benchmarks/families/memory.json
    python -m benchmarks.families.run timing --json benchmarks/families/timing.json
    python -m benchmarks.families.run table

``accuracy`` trains every network with several seeds and asks every exit about test data; it goes on
where it was stopped, since what the file already has is not run again (remove it to begin anew).
``memory`` counts what autograd keeps at the most in a training step, in one process. ``timing``
takes the time of a batch in steady state, from one learning step that was seen at work to another:
backprop in a process of one thread, local learning in one, and in two stages, which are two
processes; they take turns, and ratios are taken within a turn. It needs two idle cores. ``table``
puts the rows of the three files into ``docs/models.md``.

CIFAR-10 is looked for in ``$PPLL_DATA``; the other data come along. Where torchvision is built for
another torch, ``PYTHONPATH=tests/declaring`` makes its Python part importable.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.families.networks import FAMILIES, SYSTEMS, Family
from benchmarks.families.table import put_into
from benchmarks.gpu.kept import kept_in_a_step
from benchmarks.report import new_parser, write_report
from benchmarks.speed.one import Marks

import ppll
from ppll import fork_server
from ppll.data import Dataset, Loader, Split, load_dataset, prepare
from ppll.data.preparation import facts_of
from ppll.job import draw_blueprint, given_network

_WARM_UP = 5
"""Steps that do not count."""
_QUIET = {"track": {"trace_steps": 0}}


def accuracy(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Final output and exits of every network, by seed."""
    done = _rows_of(options.json)
    yield from done
    known = {(row["family"], row["system"], row["seed"]) for row in done}
    for name in options.only:
        for seed, system in itertools.product(range(options.seeds), ("backprop", "local")):
            if (name, system, seed) not in known:
                yield _outputs(name, system, seed)


def _rows_of(file: Path | None) -> list[dict[str, Any]]:
    if file is None or not file.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def _outputs(name: str, system: str, seed: int) -> dict[str, Any]:
    family = FAMILIES[name]
    train = {"seed": seed, "evaluate_every": 0}
    result = _fit(family, system, _data(family), train=train)[0]
    exits = result.exit_perplexity if family.holds_text else result.exit_accuracy
    row = {"family": name, "system": system, "seed": seed, "steps": result.step}
    return {**row, "exits": list(exits), "train_seconds": result.train_seconds}


def memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Bytes that are kept in a step."""
    for name in options.only:
        family = FAMILIES[name]
        for system in ("backprop", "local"):
            recipe = family.asked(system, data=family.made_up)
            data = prepare(load_dataset(recipe.data), recipe.data)
            facts = facts_of(data)
            network = given_network(family.build(), recipe, facts) if family.build else None
            fields = Loader(data, seed=0).train_batch(0, 0)
            kept = kept_in_a_step(draw_blueprint(recipe, facts, network), fields)
            yield {"family": name, "system": system, "kept_bytes": kept}


def timing(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Milliseconds a batch, in turns."""
    fork_server.warm_up()
    for name in options.only:
        family = FAMILIES[name]
        train = {"epochs": 1000, "max_steps": family.timed_steps, "evaluate_every": 0}
        for turn in range(options.repeats):
            for system in SYSTEMS:
                result, marks = _fit(family, system, None, data=family.made_up, train=train)
                seen = [mark for mark in marks if mark[0] > _WARM_UP]
                (first, start_s), (last, end_s) = seen[0], seen[-1]
                batch_ms = 1e3 * (end_s - start_s) / (last - first)
                row = {"family": name, "system": system, "turn": turn, "batch_ms": batch_ms}
                yield {**row, "steps": last - first, "busy": list(result.busy_fraction)}


def _data(family: Family) -> Dataset | None:
    """Data with fewer test samples, where that is no option of the data set."""
    if family.num_test is None:
        return None
    section = family.asked("local").data
    whole = load_dataset(section)
    test = Split(whole.test.inputs[: family.num_test], whole.test.targets[: family.num_test])
    num = section.train_limit
    train = Split(whole.train.inputs[:num], whole.train.targets[:num])
    return dataclasses.replace(whole, train=train, test=test)


def _fit(
    family: Family, system: str, own: Dataset | None, **sections: dict[str, Any]
) -> tuple[ppll.Result, list[tuple[int, float]]]:
    """One run, and when which step of its last block was seen to begin."""
    recipe = family.asked(system, **_QUIET, **sections)
    with tempfile.TemporaryDirectory(prefix="ppll-families-") as folder:
        model = family.build() if family.build else None
        trainer = ppll.Trainer(recipe, model=model, data=own, out=Path(folder) / "run")
        marks = Marks(trainer.blueprint.num_blocks - 1)
        trainer.watch = marks
        return trainer.fit(), sorted(marks.seen.items())


def main() -> None:
    """Run one part; rows are written as they come."""
    parser = new_parser(__doc__, repeats=3)
    parts = {"accuracy": accuracy, "memory": memory, "timing": timing}
    parser.add_argument("part", choices=[*parts, "table"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    if options.part == "table":
        put_into(Path("docs") / "models.md")
        return
    rows = []
    for row in parts[options.part](options):
        rows.append(row)
        print(*row.values(), flush=True)
        write_report(options, rows)


if __name__ == "__main__":
    main()

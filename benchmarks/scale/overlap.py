"""What does adding up beside the backward pass save where the network is slow?

Two hosts (network namespaces of this machine, joined by a switch; ``tc ... tbf`` shapes every link)
train two replicas of a one-stage ViT of real computation, once as it is, once with all gradients
added up after the backward pass, turn about.

Reading: seconds a batch beside those of a run without replicas on the shard's number of samples,
which is what computing alone takes. Linux, as root. Run from the repository's root::

    python -m benchmarks.scale.overlap --json benchmarks/scale/overlap.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.report import new_parser, write_report
from tests.namespaces import network, outputs, reason_for_none

RATES_MBIT = (10_000, 1000, 250)
BATCH_SIZE, NUM_STEPS, REPEATS = 64, 25, 3
RECIPE = f"""
[data]
name = "synthetic"
shape = [3, 16, 16]
num_classes = 10
num_train = {BATCH_SIZE * NUM_STEPS}
num_test = {BATCH_SIZE}
[model]
name = "vit"
patch_size = 4
width = 192
depth = 4
heads = 3
[split]
blocks = 1
[optimizer]
name = "adamw"
lr = 1e-3
[train]
epochs = 1
evaluate_every = 0
"""
WAYS = ("beside", "after", "alone")


def main() -> None:
    args = new_parser(__doc__).parse_args()
    if reason := reason_for_none():
        sys.exit(reason)
    rows = []
    for megabits in RATES_MBIT:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(REPEATS):
            for way in WAYS:
                found[way].append(seconds_a_batch(way, megabits))
        rows.append(row(megabits, found))
        print(rows[-1])
    write_report(args, rows)


def row(megabits: int, found: dict[str, list[float]]) -> dict[str, object]:
    medians = {way: statistics.median(seconds) for way, seconds in found.items()}
    exposed = {way: medians[way] - medians["alone"] for way in ("beside", "after")}
    return {"megabits": megabits, "seconds": found, "medians": medians, "exposed_s": exposed}


def seconds_a_batch(way: str, megabits: int) -> float:
    """Of a whole run, its first batches included."""
    num = 1 if way == "alone" else 2
    with network(num) as net, tempfile.TemporaryDirectory(prefix="ppll-") as folder:
        net.shape(megabits)
        out, recipe = Path(folder) / "run", Path(folder) / "vit.toml"
        recipe.write_text(RECIPE)
        command = ["benchmarks.scale.overlap_rank", way, "train", str(recipe), f"--out={out}"]
        command += [f"--set=data.batch_size={BATCH_SIZE * num // 2}", f"--set=train.replicas={num}"]
        command += [f"--set=train.max_steps={NUM_STEPS}", "--quiet"]
        agents = net.torchrun(command, 1)
        printed = outputs(agents)
        if any(agent.returncode for agent in agents):
            sys.exit("\n".join(printed))
        result = json.loads((out / "result.json").read_text())
    return float(result["train_seconds"]) / NUM_STEPS


if __name__ == "__main__":
    main()

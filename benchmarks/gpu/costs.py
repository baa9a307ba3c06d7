"""What do layers and heads cost on a device, for ``ppll plan`` and ``ppll bench emulate``?

Method: that of ``ppll plan`` (``ppll.planning.measuring``). On a GPU what is measured are replays
of layers that were recorded (``train.cuda_graphs``), or the host's launches would count for most of
it. Writes ``NAME.costs.json`` for every network and batch size into ``--out``, and the recipe with
balanced cuts as ``NAME.toml``. With them, on any machine::

    ppll plan NAME.toml --stages 8 --costs NAME.costs.json
    ppll bench emulate --recipe NAME.toml --stages 4 --costs NAME.costs.json

Run from the repository's root: ``python -m benchmarks.gpu.costs --device cuda --out DIR``
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.work import NETWORKS, TINY, make_recipe
from benchmarks.report import new_parser, write_report

from ppll.planning.measuring import measure


def main() -> None:
    options = _parse()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    rows = []
    for network, size in itertools.product(TINY if options.tiny else NETWORKS, options.batch_sizes):
        if time.monotonic() > deadline:
            row: dict[str, Any] = {"left_out": f"{options.seconds:g} s were over"}
        else:
            row = _measure(options, network, size)
        rows.append({"network": network, "batch_size": size, **row})
        print(json.dumps(rows[-1]), flush=True)
        write_report(options, rows)


def _parse() -> argparse.Namespace:
    parser = new_parser(__doc__, repeats=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the script on small networks")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--seconds", type=float, default=120.0, help="begin no row after so many")
    parser.add_argument("--out", metavar="FOLDER", required=True)
    return parser.parse_args()


def _measure(options: argparse.Namespace, network: str, size: int) -> dict[str, Any]:
    records = options.device.startswith("cuda")
    recipe = make_recipe(
        network, size, "dgl", options.device, tiny=options.tiny, cuda_graphs=records
    )
    costs = measure(recipe, repeats=options.repeats)
    name = f"{network}-{size}"
    out = Path(options.out)
    costs.write(out / f"{name}.costs.json")
    elsewhere = recipe.with_settings(["runtime.devices=cpu", "split.cuts=balanced"])
    (out / f"{name}.toml").write_text(elsewhere.to_toml(), encoding="utf-8")
    layers = costs.layers
    return {
        "device": costs.device,
        "forward_s": sum(layer.forward_s for layer in layers),
        "backward_s": sum(layer.backward_s for layer in layers),
        "block_s": costs.block_s,
        "activation_bytes": sum(layer.activation_bytes for layer in layers),
        "largest_spread": max(layer.spread for layer in layers),
    }


if __name__ == "__main__":
    main()

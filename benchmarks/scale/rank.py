"""One emulated process on a host of its own; ``benchmarks.scale.measure`` starts it.

Prints, as JSON, when it had updated after every batch, by the machine's clock.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.distributed import FileStore

from ppll.bench.chain import Chain, chain_ends, run_stage
from ppll.bench.sleeping_block import BlockTimes
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.edges import Edge

CONNECT_S = 60.0


def chain_of(text: str) -> Chain:
    """A pipeline from what ``dataclasses.asdict`` and ``json`` made of it."""
    tree = json.loads(text)
    tree["stages"] = tuple(tuple(BlockTimes(**b) for b in blocks) for blocks in tree["stages"])
    tree["replicas"] = tuple(tree["replicas"])
    return Chain(**tree)


def join(edges: list[Edge], args: argparse.Namespace, num_ranks: int, stack: ExitStack) -> Any:
    """The process's ends of all channels, each over the network. All meet in the same order."""
    store = FileStore(str(args.folder / "store"), num_ranks)
    ends = {}
    for edge in edges:
        if args.rank not in (edge.sender, edge.receiver):
            continue
        kind: Any = GroupReceiveEnd if edge.receiver == args.rank else GroupSendEnd
        ends[edge.key] = kind(
            *(store, edge.label, edge.layout, edge.capacity),
            address=args.address,
            timeout_s=CONNECT_S,
        )
        stack.callback(ends[edge.key].close)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--chain", type=chain_of, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chain: Chain = args.chain
    with ExitStack() as stack:
        made = join(list(chain.edges()), args, chain.mesh.size, stack)
        ends = chain_ends(chain, args.rank, made, stack)
        print(json.dumps(list(run_stage(chain, args.rank, ends).times_s)))


if __name__ == "__main__":
    main()

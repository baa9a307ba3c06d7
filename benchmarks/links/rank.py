"""One emulated device on a host of its own; ``benchmarks.links.run`` starts it there.

Prints, as JSON, when its last stage had updated after every batch, by the machine's clock.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.distributed import FileStore

from ppll.baselines import process
from ppll.baselines.emulated import EmulatedWork
from ppll.baselines.process import Assignment
from ppll.baselines.systems import Layout, system_named
from ppll.bench.chain import Chain, chain_messages, run_stage
from ppll.bench.sleeping_block import BlockTimes
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.ends import Ends
from ppll.prefetch import Prefetcher
from ppll.status import Monitor

CONNECT_S = 60.0


def run_ppll(args: argparse.Namespace) -> list[float]:
    """A stage of PPLL over the channel between hosts."""
    block = BlockTimes(
        args.forward_s, args.backward_s + args.auxiliary_s, int(args.payload_mib * 2**20)
    )
    chain = Chain.even(args.ranks, block, args.batches, keeps_times=True)
    with ExitStack() as stack:
        store = FileStore(str(args.folder / "store"), args.ranks)

        def end(kind: type, receiver: int) -> object:
            made = kind(
                store,
                f"features-{receiver}",
                chain.layout(receiver),
                chain.capacity,
                address=args.address,
                timeout_s=CONNECT_S,
            )
            stack.callback(made.close)
            return made

        if args.rank:
            inbox = end(GroupReceiveEnd, args.rank)
        else:
            inbox = Prefetcher(chain_messages(chain), chain.capacity)
            stack.callback(inbox.close)
        outbox = end(GroupSendEnd, args.rank + 1) if args.rank + 1 < args.ranks else None
        return list(run_stage(chain, args.rank, Ends(inbox, outbox)).times_s)


def run_rival(args: argparse.Namespace) -> list[float]:
    """A rank of data parallelism or of torch's pipelining."""
    layout = Layout(system_named(args.system), args.ranks, args.microbatches, args.batches)
    is_cut = layout.num_chunks > 1
    work = EmulatedWork.even(
        layout.num_chunks,
        forward_s=args.forward_s * args.ranks,
        backward_s=args.backward_s * args.ranks,
        payload_bytes=int(args.payload_mib * 2**20) if is_cut else 0,
        parameter_bytes=int(args.parameters_mib * 2**20),
    )
    assignment = Assignment(
        work.prepared(layout), layout, args.folder, CONNECT_S, False, interface="eth0"
    )
    return list(process.run(assignment, args.rank, Monitor(), []).end_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--address", required=True)
    for name in ("rank", "ranks", "batches", "microbatches"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("forward-s", "backward-s", "auxiliary-s", "payload-mib", "parameters-mib"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run_ppll(args) if args.system == "ppll" else run_rival(args)))


if __name__ == "__main__":
    main()

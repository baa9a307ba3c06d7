"""One emulated stage of a replica on a host of its own; ``benchmarks.scale.measure`` starts it.

Prints, as JSON, when it had updated after every batch, by the machine's clock.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore

from ppll.bench.chain import BlockTimes, Chain, SleepingBlock, chain_messages, run_stage
from ppll.channels.process_group import GroupReceiveEnd, GroupSendEnd
from ppll.ending import Ending
from ppll.ends import Ends
from ppll.mesh import Mesh
from ppll.prefetch import Prefetcher
from ppll.replicas import Line, Neighbour, line_capacity, piece_layout

CONNECT_S = 60.0


class Rank:
    """A rank's channels, all between hosts."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        self.rank, self.mesh = args.rank, Mesh.of(args.stages, args.replicas)
        block = BlockTimes(args.forward_s, args.learn_s, int(args.payload_mib * 2**20))
        self.chain = Chain.even(args.stages, block, args.batches, keeps_times=True)
        self.gradient = torch.zeros(int(args.parameters_mib * 2**18))
        self._store = FileStore(str(args.folder / "store"), self.mesh.size)
        self._address = args.address
        self._stack = stack

    def run(self) -> list[float]:
        """When the stage had updated after every batch."""
        mesh, rank = self.mesh, self.rank
        stage = mesh.stage(rank)
        # All meet in the same order: features from the first stage on, then the lines.
        inbox = self._end(GroupReceiveEnd, "features", rank, stage) if stage else self._loader()
        has_next = stage + 1 < mesh.num_stages
        outbox = self._end(GroupSendEnd, "features", rank + 1, stage + 1) if has_next else None
        add_up = self._line().add_up if mesh.num_replicas(rank) > 1 else None
        SleepingBlock.learn = _learns(SleepingBlock.learn, add_up, self.gradient)  # type: ignore
        return list(run_stage(self.chain, stage, Ends(inbox, outbox)).times_s)

    def _loader(self) -> Prefetcher:
        loader = Prefetcher(chain_messages(self.chain), self.chain.capacity)
        self._stack.callback(loader.close)
        return loader

    def _line(self) -> Line:
        mesh, rank = self.mesh, self.rank
        before = after = None
        if rank - mesh.num_stages >= 0:
            up = self._end(GroupReceiveEnd, "up", rank)
            before = Neighbour(up, self._end(GroupSendEnd, "back", rank - mesh.num_stages))
        if rank + mesh.num_stages < mesh.size:
            up = self._end(GroupSendEnd, "up", rank + mesh.num_stages)
            after = Neighbour(self._end(GroupReceiveEnd, "back", rank), up)
        num_after = mesh.num_replicas(rank) - 1 - mesh.replica(rank)
        return Line(before, after, num_after, Ending())

    def _end(self, kind: Any, name: str, receiver: int, stage: int | None = None) -> Any:
        if stage is not None:
            layout, capacity = self.chain.layout(stage), self.chain.capacity
        else:
            layout = piece_layout(self.gradient.nbytes)
            capacity = line_capacity(self.mesh.num_replicas(self.rank))
        end = kind(
            *(self._store, f"{name}-{receiver}", layout, capacity),
            address=self._address,
            timeout_s=CONNECT_S,
        )
        self._stack.callback(end.close)
        return end


def _learns(sleeps: Any, add_up: Any, gradient: Tensor) -> Any:
    def learn(block: SleepingBlock, *late: object) -> dict[str, Tensor]:
        found: dict[str, Tensor] = sleeps(block, *late)
        if add_up is not None:
            add_up([gradient, torch.tensor([0])])
        return found

    return learn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--address", required=True)
    for name in ("rank", "stages", "replicas", "batches"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("forward-s", "learn-s", "payload-mib", "parameters-mib"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        print(json.dumps(Rank(args, stack).run()))


if __name__ == "__main__":
    main()

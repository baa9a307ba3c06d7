"""Emulated pipelines with replicas: who is joined to whom, and that all messages get through."""

from __future__ import annotations

import pytest

from ppll.baselines.sleeping import Sleeper
from ppll.bench.chain import Chain, chain_messages, run_chain
from ppll.bench.sleeping_block import BATCH, BlockTimes, SleepingBlock
from ppll.message import FEATURES, TARGETS
from ppll.simulation.line_times import BUCKET_BYTES

MIB = 2**20


def chain(*replicas: int, num_batches: int = 5, gradient_bytes: int = 1000) -> Chain:
    stages = tuple((BlockTimes(0, 0, 8 * MIB // r, gradient_bytes),) for r in replicas)
    return Chain(stages, num_batches, keeps_times=True, replicas=replicas)


def test_channels_of_a_stage_with_replicas() -> None:
    keys = [edge.key for edge in chain(1, 2, 1).edges()]
    # Ranks 0 to 2 are the stages' first replicas, rank 3 is the second of stage 1.
    assert keys == [
        *(("features", 0, 1), ("features", 0, 3), ("up", 1, 3), ("back", 3, 1)),
        *(("features", 1, 2), ("features", 3, 2)),
    ]
    assert [edge.key for edge in chain(1, 1).edges()] == [("features", 0, 1)]


def test_slots_hold_parts() -> None:
    layout = chain(1, 4, 2).layout(1)
    assert layout.slot_bytes >= 2 * MIB + BATCH // 4 * 8
    # A replica of three sends rows for up to 22 of 64 samples.
    ragged = chain(1, 3)
    assert ragged.row_bytes(0) == 8 * MIB // BATCH
    assert ragged.layout(1).slot_bytes >= 22 * ragged.row_bytes(0)


def test_a_loader_makes_its_replicas_shard() -> None:
    shards = [list(chain_messages(chain(3, 1), replica)) for replica in range(3)]
    assert [shard[0].tensors[TARGETS].shape[0] for shard in shards] == [21, 21, 22]
    assert sum(shard[0].share for shard in shards) == pytest.approx(1)
    assert [message.sequence for message in shards[0]] == list(range(6))
    assert [message.step for message in shards[0]] == [1, 2, 3, 4, 5, 5]


def test_a_sleeping_block_adds_up_every_bucket() -> None:
    asked: list[int] = []

    class Adder:
        def start(self, tensors: list, what: str, take: object) -> None:
            asked.extend(tensor.nbytes for tensor in tensors)

        def finish(self) -> None:
            asked.append(-1)

    times = BlockTimes(0, 0, 64, 5 * BUCKET_BYTES // 2)
    block = SleepingBlock(0, times, 4, Sleeper(), Adder())  # type: ignore[arg-type]
    message = next(chain_messages(chain(2)))
    assert block.forward(message).tensors[FEATURES].shape == (BATCH // 2, 1)
    block.learn()
    assert asked == [BUCKET_BYTES, BUCKET_BYTES, BUCKET_BYTES // 2, 8, -1]


@pytest.mark.processes
@pytest.mark.parametrize("replicas", [(1, 2, 1), (2, 4, 1), (3, 1)], ids=str)
def test_all_messages_pass_through_all_replicas(replicas: tuple[int, ...]) -> None:
    reports = run_chain(chain(*replicas, num_batches=12, gradient_bytes=5 * MIB))
    assert [len(report.times_s) for report in reports] == [12] * sum(replicas)

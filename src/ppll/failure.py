"""The first cause of a failed run, in the words that the user reads."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Final

from ppll.status import Activity, Status

__all__ = ["Failure"]

_DOING: Final = {
    Activity.START: "while it started",
    Activity.RECEIVE: "while it waited for a message",
    Activity.FORWARD: "in the forward",
    Activity.SEND_WAIT: "while it waited for the next stage",
    Activity.SEND: "while it sent features",
    Activity.LEARN: "in the learning step",
    Activity.EVALUATE: "while it evaluated",
    Activity.SAVE: "while it saved a checkpoint",
    Activity.FINISH: "while it finished",
}


@dataclass(frozen=True)
class Failure:
    """What went wrong in one rank.

    Attributes:
        rank: The process.
        block: Block at work; -1 where none was.
        step: Training batches that had reached the rank.
        activity: What the rank was doing.
        time_s: When, in seconds of the machine's monotonic clock.
        cause: One line.
        detail: The original traceback, or the stacks of a rank that hangs.
    """

    rank: int
    block: int
    step: int
    activity: Activity
    time_s: float
    cause: str
    detail: str = ""

    @classmethod
    def of(cls, error: BaseException, rank: int, status: Status, time_s: float) -> Failure:
        """The failure that an exception in a rank is."""
        return cls(
            rank,
            status.block,
            status.step,
            status.activity,
            time_s,
            "".join(traceback.format_exception_only(error)).strip(),
            "".join(traceback.format_exception(error)).rstrip(),
        )

    @classmethod
    def silent(
        cls, rank: int, status: Status, time_s: float, cause: str, detail: str = ""
    ) -> Failure:
        """The failure of a rank that could not say anything itself."""
        return cls(rank, status.block, status.step, status.activity, time_s, cause, detail)

    def message(self) -> str:
        """Rank, stage, block, step and cause on one line, and the detail below."""
        block = f", block {self.block}" if self.block >= 0 else ""
        head = (
            f"rank {self.rank} (stage {self.rank}{block}) failed at step {self.step}, "
            f"{_DOING[self.activity]}: {self.cause}"
        )
        return f"{head}\n{self.detail}" if self.detail else head

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
    Activity.AVERAGE: "while it added up with its replicas",
    Activity.EVALUATION_FORWARD: "in the forward of an evaluation",
    Activity.COUNT: "while it read what its blocks had counted",
    Activity.MAKE_BATCH: "while it made a batch",
}


_MEMORY_HINT: Final = (
    " (out of memory: lower data.batch_size, cut the network into more split.blocks, or give them "
    "more runtime.stages or larger machines)"
)


def _hint(error: BaseException, text: str) -> str:
    """What to do about an error whose message does not say it."""
    lacks_memory = isinstance(error, MemoryError) or any(
        sign in text for sign in ("OutOfMemoryError", "can't allocate memory", "out of memory")
    )
    return _MEMORY_HINT if lacks_memory else ""


def _plain(text: str) -> str:
    """A text that can be encoded."""
    return text.encode(errors="backslashreplace").decode()


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
        is_exception: Whether the rank raised it, and was not just found dead or standing still.
        place: Stage and replica of the rank, for people.
    """

    rank: int
    block: int
    step: int
    activity: Activity
    time_s: float
    cause: str
    detail: str = ""
    is_exception: bool = False
    place: str = ""

    @classmethod
    def of(
        cls, error: BaseException, rank: int, status: Status, time_s: float, place: str = ""
    ) -> Failure:
        """The failure that an exception in a rank is."""
        # The error's own words may fail, and hold what no text may (of file names, for one).
        cause = _plain("".join(traceback.format_exception_only(error))).strip()
        return cls(
            rank,
            status.block,
            status.step,
            status.activity,
            time_s,
            cause + _hint(error, cause),
            _plain("".join(traceback.format_exception(error))).rstrip(),
            is_exception=True,
            place=place,
        )

    @classmethod
    def silent(
        cls,
        rank: int,
        status: Status,
        time_s: float,
        cause: str,
        detail: str = "",
        place: str = "",
    ) -> Failure:
        """The failure of a rank that could not say anything itself."""
        about = (status.block, status.step, status.activity, time_s, cause, detail)
        return cls(rank, *about, place=place)

    def repeats(self, other: Failure) -> bool:
        """Whether the same exception has come at the same step, and so will come again."""
        same = (self.rank, self.block, self.step, self.cause) == (
            other.rank,
            other.block,
            other.step,
            other.cause,
        )
        return same and self.is_exception

    def message(self) -> str:
        """Rank, stage, block, step and cause on one line, and the detail below."""
        return f"{self.head()}\n{self.detail}" if self.detail else self.head()

    def head(self) -> str:
        """Rank, stage, block, step and cause on one line."""
        place = self.place or f"stage {self.rank}"
        block = f", block {self.block}" if self.block >= 0 else ""
        return (
            f"rank {self.rank} ({place}{block}) failed at step {self.step}, "
            f"{_DOING[self.activity]}: {self.cause}"
        )

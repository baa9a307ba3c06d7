"""Every exception that PPLL raises, as one tree.

::

    PpllError
    ├── UsageError              a recipe or command that cannot be (exit code 2)
    │   ├── RecipeError         an unknown key, name or value in a recipe
    │   ├── DataError           data that is missing, damaged or does not fit the recipe
    │   ├── ModelError          a network that cannot be split or trained as asked
    │   └── RunFolderError      a run folder that exists, is missing or is not a run
    ├── CheckpointError         a checkpoint that is torn, damaged or does not match
    ├── ChannelError            something went wrong between two stages
    │   ├── ChannelClosed       the other end is gone
    │   ├── ChannelTimeout      the other end did not move in time
    │   └── ProtocolError       what arrived is not what was announced
    ├── WorkerError             a run failed; says which rank, stage, block and step (exit code 1)
    └── Interrupted             Ctrl-C or SIGTERM; a checkpoint was written (exit code 130)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pydantic

    from ppll.launching.failure import Failure

__all__ = [
    "ChannelClosed",
    "ChannelError",
    "ChannelTimeout",
    "CheckpointError",
    "DataError",
    "Interrupted",
    "ModelError",
    "PpllError",
    "ProtocolError",
    "RecipeError",
    "RunFolderError",
    "UsageError",
    "WorkerError",
    "first_problem",
    "unknown_name",
    "up_to",
]


class PpllError(Exception):
    """Base of all exceptions that PPLL raises on purpose."""


class UsageError(PpllError):
    """What was asked for cannot be; the message says what was found, is allowed, and is to do."""


class RecipeError(UsageError):
    """A recipe names something unknown or a value that is not allowed."""


class DataError(UsageError):
    """Data is missing, damaged, or does not fit the recipe."""


class ModelError(UsageError):
    """A network cannot be split or trained as asked."""


class RunFolderError(UsageError):
    """A run folder already holds a run, is missing, or is not one."""


class CheckpointError(PpllError):
    """A checkpoint is torn, damaged, or does not match the network."""


class ChannelError(PpllError):
    """Something went wrong between two stages."""


class ChannelClosed(ChannelError):
    """The other end of the channel is gone."""


class TransportError(ChannelError):
    """What carries a channel's bytes fails, as it also does when the other end dies."""


class ChannelTimeout(ChannelError):
    """The other end of the channel did not move in time."""


class ProtocolError(ChannelError):
    """What arrived on a channel is not what was announced."""


class WorkerError(PpllError):
    """A run failed; the message names rank, stage, block, step and the first cause.

    Args:
        message: What the user reads.
        failure: The first cause as data, a ``ppll.launching.failure.Failure``.
    """

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


class Interrupted(PpllError):
    """The run was ended by Ctrl-C or SIGTERM; the message says at which step and where it is saved.

    Raised by ``Trainer.fit`` and other calls that hear signals, instead of ``KeyboardInterrupt``.
    After the first signal a checkpoint was written, and the same call with ``resume=True`` goes on;
    after a second one the run stopped at once, and the newest checkpoint is an older one.
    """


def first_problem(error: pydantic.ValidationError) -> str:
    """What a file of our own holds that it should not, on one line: where, and what is wrong."""
    problem = error.errors()[0]
    return "".join(f"{part}: " for part in problem["loc"]) + problem["msg"]


_MOST_SHOWN: Final = 50
"""Names that a message lists beside the nearest one."""


def unknown_name(what: str, found: str, allowed: Iterable[str]) -> str:
    """Say that ``found`` is no ``what``, with the nearest known name and all of them.

    Of more than some tens, such as the classes of ``torch.nn``, the nearest one alone.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f" Known: {', '.join(names)}." if not near or len(names) <= _MOST_SHOWN else ""
    return f"unknown {what} {found!r}.{hint}{known}"


def up_to(most: int, thing: str) -> str:
    """How many of a thing there may be, in words.

    Example:
        >>> up_to(1, "stage"), up_to(4, "stage")
        ('1 stage', '1 to 4 stages')
    """
    return f"1 {thing}" if most == 1 else f"1 to {most} {thing}s"

"""Who may write to a run: one launcher at a time, and only the workers of its newest start.

The lock keeps a second launcher out for as long as the first lives. The claim keeps workers out
that outlived their launcher or an earlier start: it changes with every start, and whoever holds an
old one may write no checkpoint any more.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppll.durable import write_whole
from ppll.errors import CheckpointError, RunFolderError

__all__ = ["LOCK_NAME", "Claim", "locked"]

LOCK_NAME = "lock"
_CLAIM_NAME = "claim"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other launcher trains in it.

    Raises:
        RunFolderError: Another one does, or nothing can be written there.
    """
    try:
        file = (run / LOCK_NAME).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunFolderError(f"cannot write into {run}: {error.strerror}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunFolderError(
                f"process {file.read().strip() or '(unknown)'} trains in {run} at this moment: "
                f"wait for it or stop it, or choose another --out."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class Claim:
    """The right of one start of a run to write checkpoints.

    Args:
        run: The run's folder.
        token: What tells this start from all others.
    """

    def __init__(self, run: Path, token: str) -> None:
        self.run = run
        self.token = token

    @classmethod
    def take(cls, run: Path) -> Claim:
        """Take the right from whoever had it."""
        claim = cls(run, secrets.token_hex(8))
        write_whole(run / _CLAIM_NAME, claim.token.encode())
        return claim

    def check(self) -> None:
        """Refuse to go on where another start has taken over.

        Raises:
            CheckpointError: It has.
        """
        try:
            found = (self.run / _CLAIM_NAME).read_bytes()
        except OSError as error:
            raise CheckpointError(f"the run's claim is gone: {error}.") from None
        if found != self.token.encode():
            raise CheckpointError(
                "another start of this run has taken over, so this one saves nothing any more."
            )

"""The rank's end of the line to its launcher."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from ppll.channels import sockets
from ppll.launching import lifeline
from ppll.launching.lifeline import RankEnd


class Left(Exception):
    """Instead of the end of a process."""


@pytest.mark.parametrize("there", [True, False], ids=["its socket is there", "nothing is there"])
def test_a_rank_whose_launcher_was_gone_first_leaves_nothing(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> NoReturn:
        raise Left(code)

    monkeypatch.setattr(lifeline, "_CONNECT_TIMEOUT_S", 0.0)
    monkeypatch.setattr(lifeline.threading.Thread, "start", lambda _: None)
    monkeypatch.setattr(lifeline.os, "_exit", leave)
    # Not below tmp_path: the path of a socket may have some hundred bytes only.
    folder = Path(tempfile.mkdtemp(prefix="t"))
    path = folder / "launcher-0"
    if there:
        sockets.listen(path).close()
    with pytest.raises(Left, match="1"):
        RankEnd(path, b"secret", 0, [folder])
    assert not folder.exists()

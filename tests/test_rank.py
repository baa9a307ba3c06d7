"""One rank's life, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

import ppll
from ppll.checkpoints.starting import begin, next_start
from ppll.faults import Fault, InjectedFault, injected_monitor
from ppll.metrics import MetricsFile
from ppll.rank import run_rank
from ppll.run_folder import RunFolder
from ppll.status import Monitor
from tests.test_in_process import recipe


def test_what_fails_is_told_before_anything_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends of channels may take seconds to close, and neighbours ask why they did."""
    notes: list[str] = []
    close = MetricsFile.close

    def noted_close(file: MetricsFile) -> None:
        notes.append("closed")
        close(file)

    def tell(error: BaseException) -> None:
        notes.append(type(error).__name__)

    monkeypatch.setattr(MetricsFile, "close", noted_close)
    beginning = ppll.Trainer(recipe(), out=tmp_path)._beginning(RunFolder.make(tmp_path))
    begin(beginning)
    monitor = injected_monitor(Fault(rank=0, step=2), 0, 0, Monitor())
    with pytest.raises(InjectedFault):
        run_rank(next_start(beginning, 0), 0, monitor, tell=tell)
    assert notes == ["InjectedFault", "closed"]

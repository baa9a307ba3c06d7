"""What a study reads of a run, also where that is damaged."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from ppll.config import Recipe
from ppll.errors import RunFolderError
from ppll.run_folder import RunFolder
from ppll.studies import study
from ppll.studies.outcome import exits_path, is_trained, read_outcome
from ppll.studies.runs import StudyRun

RESULT = {
    "step": 5,
    "epoch": 1,
    "train_seconds": 2.0,
    "samples_per_second": 3.0,
    "test_accuracy": 0.5,
    "exit_accuracy": [0.25, 0.5],
    "validation_accuracy": None,
    "num_blocks": 2,
    "num_stages": 1,
    "busy_fraction": [1.0],
    "peak_memory_bytes": [4],
    "training_peak_bytes": [3],
    "weights_sha256": "",
    "run_folder": "",
}


@pytest.fixture
def trained(tmp_path: Path) -> StudyRun:
    """What the folder of a finished run of one epoch holds, as far as a study reads it."""
    recipe = Recipe().with_settings(["train.epochs=1"])
    run = StudyRun("mine", "dgl", recipe, RunFolder.make(tmp_path / "run"))
    facts = {"input_shape": [1, 8, 8], "num_classes": 10, "steps_per_epoch": 5}
    run.folder.facts.write_text(json.dumps(facts))
    run.folder.result.write_text(json.dumps(RESULT))
    run.folder.history.write_text('{"step": 0}\n')
    exits_path(run.folder).write_text('{"step": 5, "average_accuracy": 0.75, "exits": []}')
    return run


def test_a_finished_run_is_read(trained: StudyRun) -> None:
    trained.folder.result.write_text(json.dumps({**RESULT, "validation_accuracy": 0.4}))
    found = read_outcome(trained)
    assert found is not None
    assert (found.validation_accuracy, found.test_accuracy) == (0.4, 0.5)
    assert (found.average_accuracy, found.epoch_seconds) == (0.75, 2.0)
    assert found.peak_memory_bytes == 4


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"step": 5}', '{"step": 5, "average_accuracy": "x"}'),
        *('{"step": 5, "average_accuracy": null}', '{"step": 5, "average_accuracy": 75}'),
        '{"step": 4, "average_accuracy": 0.5}',
    ],
)
def test_exits_that_are_damaged_are_tested_again(content: str, trained: StudyRun) -> None:
    exits_path(trained.folder).write_text(content)
    assert is_trained(trained.folder, trained.recipe)
    assert read_outcome(trained) is None


def test_a_run_that_was_not_tested_goes_on(trained: StudyRun) -> None:
    trained.folder.result.write_text(json.dumps({**RESULT, "test_accuracy": None}))
    assert not is_trained(trained.folder, trained.recipe)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("result.json", "{", r"Invalid JSON: [^\n]*\. Put it back from a copy, or remove it"),
        ("result.json", "[]", r"[^\n]*\. Put it back"),
        ("result.json", json.dumps({**RESULT, "step": "x"}), r"step: Input should be [^\n]*"),
        ("data.json", "{", r"Invalid JSON: [^\n]*"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: str, words: str, trained: StudyRun
) -> None:
    (trained.folder.path / name).write_text(content)
    with pytest.raises(
        RunFolderError, match=rf"^cannot read .*{re.escape(name)}: {words}"
    ) as error:
        read_outcome(trained)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("history", "epoch_seconds"),
    [
        ('{"step": 0}\n{"time": "2026\n{"step": 3}\n', 5.0),
        ('{"step": 0}\n{"time": "2026', 2.0),
        ("[1]\n{}\n", None),
    ],
)
def test_a_start_that_was_killed_while_it_wrote_hinders_nothing(
    history: str, epoch_seconds: float | None, trained: StudyRun
) -> None:
    trained.folder.history.write_text(history)
    found = read_outcome(trained)
    assert found is not None
    assert found.epoch_seconds == epoch_seconds


def test_a_start_that_only_tested_says_nothing_of_what_training_took(trained: StudyRun) -> None:
    """The one before it was killed in the last evaluation, so its own numbers are lost."""
    trained.folder.history.write_text('{"step": 0}\n{"step": 5}\n')
    trained.folder.result.write_text(json.dumps({**RESULT, "samples_per_second": 0.0}))
    found = read_outcome(trained)
    assert found is not None
    assert (found.epoch_seconds, found.peak_memory_bytes) == (None, None)


class FoundFinished:
    """The process of a run that has written everything when a signal ends it."""

    seconds = 1.0

    def __init__(self, run: StudyRun) -> None:
        self.run = run
        self.times = 0

    def ask_to_end(self, times: int) -> None:
        self.times = times

    def exit_code(self) -> int | None:
        return -signal.SIGTERM if self.times else None

    def close(self) -> None:
        """There is no process."""


def test_a_run_that_a_signal_finds_finished_is_not_left(trained: StudyRun, monkeypatch) -> None:
    monkeypatch.setattr(study, "_Training", FoundFinished)
    said: list[str] = []

    def noted(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert study.train_all([trained], noted=noted, finished=lambda: said.append("table")) == []
    assert said[1:] == ["mine dgl seed 0: 50.00% after 1 s; 1 of 1 through", "table"]

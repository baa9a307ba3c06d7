"""The words in which a failed run is reported."""

from __future__ import annotations

import json
from dataclasses import asdict

import pydantic
import pytest

from ppll.launching.failure import Failure
from ppll.status import Activity, Status


def status(activity: Activity = Activity.LEARN, block: int = 2) -> Status:
    return Status(activity, 0.0, block, 41, 0, 0, 0, 0, 0.0, 0.0)


def failure_of(status: Status) -> Failure:
    try:
        raise ValueError("bad\nnews")
    except ValueError as error:
        return Failure.of(error, 1, status, 3.5)


def test_an_error_is_reported_with_its_place_and_traceback() -> None:
    failure = failure_of(status())
    head, _, detail = failure.message().partition("\nTraceback (most recent call last):")
    assert head == (
        "rank 1 (stage 1, block 2) failed at step 41, in the learning step: ValueError: bad\nnews"
    )
    assert "in failure_of" in detail
    assert failure.time_s == 3.5


def test_no_block_is_named_where_none_was_at_work() -> None:
    message = failure_of(status(Activity.RECEIVE, block=-1)).message()
    assert message.startswith("rank 1 (stage 1) failed at step 41, while it waited for a message: ")


@pytest.mark.parametrize("activity", Activity)
def test_a_silent_rank_is_reported_whatever_it_did(activity: Activity) -> None:
    failure = Failure.silent(0, status(activity), 1.0, "killed by SIGKILL")
    assert failure.message().endswith(": killed by SIGKILL")
    with_detail = Failure.silent(0, status(activity), 1.0, "hangs", "stacks")
    assert with_detail.message().endswith(": hangs\nstacks")


class Broken(Exception):
    def __str__(self) -> str:
        raise KeyError


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("no image: /data/\udcff.jpg"), r"ValueError: no image: /data/\udcff.jpg"),
        (Broken(), "test_failure.Broken: <exception str() failed>"),
    ],
)
def test_an_error_is_reported_whatever_its_words_are(error: Exception, cause: str) -> None:
    failure = Failure.of(error, 0, status(), 1.0)
    assert failure.cause.endswith(cause)
    told = json.loads(json.dumps(asdict(failure)).encode())
    sent = pydantic.TypeAdapter(Failure).validate_json(json.dumps(told))
    assert sent == failure

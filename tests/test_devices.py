"""Which device a stage gets, and which devices are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ppll
from ppll.blocks.slow import SlowParameters
from ppll.devices import check_devices, device_of
from ppll.errors import RecipeError
from ppll.message import FEATURES, Kind, Message
from tests.faults import recipe

CPU = torch.device("cpu")


def devices_of(devices: object, stages: int = 3) -> list[str]:
    runtime = recipe(devices=devices, stages=stages).runtime
    return [str(device_of(runtime, stage)) for stage in range(stages)]


def test_a_stage_gets_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("auto") == devices_of("cpu") == ["cpu"] * 3
    assert devices_of("cuda:1") == ["cuda:1"] * 3
    assert devices_of("cuda") == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_of(["cuda:1", "cpu", "cuda"]) == ["cuda:1", "cpu", "cuda:0"]


@pytest.mark.parametrize(
    ("devices", "num_gpus", "message"),
    [
        ("cuda", 0, r"asks this machine for 'cuda'\. Of GPUs it has none: set .*\"cpu\""),
        ("cuda:2", 2, r"asks this machine for 'cuda:2'\. Of GPUs it has cuda:0 to cuda:1"),
        ("gpu", 2, r"'gpu' is no device: name \"auto\", \"cpu\", \"cuda\" or \"cuda:0\""),
        ("cuda:-1", 2, "no device"),
        (["cpu", "cpu"], 0, r"names 2 devices for 3 stages .*: name one a stage"),
        (["cpu", "cuda:0", "mps"], 1, "'mps' is no device"),
    ],
)
def test_what_is_not_there_is_refused(
    devices: object, num_gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    with pytest.raises(RecipeError, match=message):
        check_devices(recipe(devices=devices, stages=3))


def test_what_is_there_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in ("auto", "cpu", "cuda", "cuda:1", ["cpu", "cuda:1", "cuda"]):
        check_devices(recipe(devices=devices, stages=3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize(
    "devices", ["cuda", pytest.param(["cuda:0"], marks=pytest.mark.slow), ["cpu", "cpu", "cpu"]]
)
def test_a_run_is_evaluated_where_its_devices_are_not(devices: object, tmp_path: Path) -> None:
    trained = ppll.Trainer(recipe(), out=tmp_path).fit()
    elsewhere = recipe(devices=devices).to_toml()  # As a machine with GPUs has written it.
    (tmp_path / "config.toml").write_text(elsewhere)
    found = ppll.evaluate(tmp_path)
    assert found.exit_accuracy == trained.exit_accuracy
    assert found.weights_sha256 == trained.weights_sha256


def test_a_message_is_moved_where_it_is_not() -> None:
    """The meta device stands for a GPU."""
    message = Message(kind=Kind.TRAIN, sequence=0, step=1, tensors={FEATURES: torch.zeros(2, 3)})
    assert message.on(CPU) is message
    moved = message.on(torch.device("meta"))
    assert moved.features.device.type == "meta"
    assert (moved.step, moved.features.shape) == (1, (2, 3))


def test_slow_parameters_come_to_their_reader() -> None:
    slow = SlowParameters(torch.zeros(1, 4, device="meta"))
    slow.take()
    slow.put(torch.ones(4))
    assert slow.take().device.type == "meta"

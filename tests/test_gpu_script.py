"""``benchmarks/gpu/run.sh`` itself, on a processor and small networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.sh"


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *options],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_it_measures_everything_and_writes_it_down(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    training = json.loads((out / "training.json").read_text())["rows"]
    names = {(row["network"], row["method"]) for row in training}
    assert names == {(n, s) for n in ("resnet32", "vit-tiny") for s in ("backprop", "dgl")}
    memory = {(row["network"], row["method"]): row["memory_bytes"] for row in training}
    for network in ("resnet32", "vit-tiny"):
        assert 0 < memory[network, "dgl"] < memory[network, "backprop"]
        plan = json.loads((out / f"{network}-8.plan.json").read_text())
        assert plan["rows"]
        assert (out / f"{network}-8.costs.json").is_file()
    assert all(row["samples_per_second"]["median"] > 0 for row in training)
    ranks = json.loads((out / "ranks.json").read_text())["rows"]
    assert [row["stages"] for row in ranks] == [1, 4] * 2
    assert len({row["weights_sha256"] for row in ranks}) == 2
    messages = json.loads((out / "channel.json").read_text())["rows"]
    assert [row["way"] for row in messages] == ["device", "host"]
    loader = json.loads((out / "loader.json").read_text())["rows"]
    paths = ["host, waiting", "host, in order", "host, pinned", "device"]
    assert [row["path"] for row in loader] == paths * 3
    assert all(row["samples_per_second"]["median"] > 0 for row in loader)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(200)
def test_a_part_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    """No device is called so; the plans have no costs to read, and the tests are skipped."""
    done = run("--device", "none", "--tiny", OUT=str(tmp_path))
    assert done.returncode == 1
    assert "failed: costs training ranks channel loader" in done.stderr
    assert "'none' is no device" in (tmp_path / "training.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--fast"], "unknown option --fast: allowed are"), (["--device"], "--device needs a name")],
)
def test_what_is_no_option_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    done = run(*options, OUT=str(tmp_path))
    assert done.returncode != 0
    assert message in done.stderr
    assert not list(tmp_path.iterdir())

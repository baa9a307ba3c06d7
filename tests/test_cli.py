"""The command line, as a shell sees it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ppll import fork_server, trainer, zoo
from ppll.cli.app import main
from ppll.errors import UsageError
from ppll.planning.measuring import measure
from ppll.recipe_files import load_recipe
from ppll.testing import Fault
from tests.thinning import slow_but

TINY = [
    *("--set", "data.name=synthetic", "--set", "data.shape=[1,8,8]"),
    *("--set", "data.num_train=45", "--set", "data.num_test=10"),
    *("--set", "data.batch_size=10", "--set", "model.depth=14", "--set", "model.width=4"),
]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PPLL_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}


def ppll(*args: str, env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own; nothing of it may be left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ppll", *args],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    wait_until_gone(process.pid)
    return subprocess.CompletedProcess(args, code, out, err)


def wait_until_gone(session: int, timeout_s: float = 5.0) -> None:
    """Fail when a process of the session is still there after the time."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in Path("/proc").glob("[0-9]*") if session_of(pid) == session]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def session_of(process: Path) -> int | None:
    try:
        state, *fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[2])


@pytest.mark.processes
def test_stages_print_the_hash_of_one(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    lines = set()
    for stages in ("1", "2", "4"):
        args = ("digits-resnet", "--set=train.epochs=1", *TINY, f"--out={tmp_path / stages}")
        code, out, err = run_here(monkeypatch, capsys, "train", *args, "--stages", stages)
        assert code == 0, err
        lines.add(next(line for line in out.splitlines() if line.startswith("weights_sha256")))
        assert "busy share" in out
        assert "final output" in out
    assert len(lines) == 1


@pytest.mark.processes
def test_a_failure_has_exit_code_1_and_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in Fault(rank=1, step=2).to_environment().items():
        monkeypatch.setenv(name, value)
    args = ("train", "digits-resnet", "--stages", "2", "--quiet", "--out", str(tmp_path / "run"))
    code, _, err = run_here(monkeypatch, capsys, *args, *TINY)
    assert code == 1
    assert err.startswith("WorkerError: rank 1 (stage 1, block 2) failed at step 2")
    assert err.count("rank ") == 1


@pytest.mark.processes
@pytest.mark.parametrize("stages", slow_but(["2"], ["1", "2"]))
def test_ctrl_c_saves_and_leaves_with_130(
    stages: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    args = ["train", "digits-resnet", "--stages", stages, "--quiet", "--out", str(run), *TINY]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ppll",
            *args,
            "--set",
            "train.epochs=100000",
            "--set",
            "runtime.log_every_steps=1",
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = run / "metrics" / "rank-0.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads((run / "result.json").read_text())
    assert result["step"] > 0
    assert (run / "checkpoints" / f"step-{result['step']:08d}" / "manifest.json").exists()
    wait_until_gone(process.pid)


@pytest.mark.processes
def test_ctrl_c_while_it_starts_says_so_and_nothing_else(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    args = ["train", "digits-resnet", "--stages", "2", "--out", str(tmp_path / "run"), *TINY]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppll", *args],
        env={**environment, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "Interrupted: stopped before anything began; nothing was saved.\n"
    wait_until_gone(process.pid)
    assert list(tmp_path.glob("pymp-*")) == []


@pytest.mark.slow
@pytest.mark.processes
def test_no_orphans_when_the_launcher_is_killed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    args = ["train", "digits-resnet", "--stages", "2", "--quiet", "--out", str(run), *TINY]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ppll",
            *args,
            "--set",
            "train.epochs=100000",
            "--set",
            "runtime.log_every_steps=1",
        ],
        env=environment,
        start_new_session=True,
    )
    metrics = run / "metrics" / "rank-1.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_until_gone(process.pid)


@pytest.mark.processes
def test_eval_gives_the_accuracy_of_training(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    run = str(tmp_path / "run")
    args = ("train", "digits-resnet", "--quiet", "--out", run, "--set", "train.epochs=2", *TINY)
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 0, err
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    code, printed, err = run_here(monkeypatch, capsys, "eval", run, "--stages", "2", "--json")
    assert code == 0, err
    evaluated = json.loads(printed)
    for key in ("exit_accuracy", "test_accuracy", "weights_sha256", "step"):
        assert evaluated[key] == trained[key]


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str, str]:
    """Run a command in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setattr(sys, "argv", ["ppll", *args])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("digits-resnett", [], "Did you mean 'digits-resnet'"),
        ("digits-resnet", ["trian.epochs=2"], "Did you mean 'train'"),
        ("digits-resnet", ["data.batch_size=0"], "data.batch_size"),
        ("digits-resnet", ["data.batch_size=46"], "choose 1 to 45"),
        ("digits-resnet", ["data.batch_size=44"], "the last training batch of an epoch has one"),
        ("digits-resnet", ["train.accumulate=10"], "training messages have one sample"),
        ("digits-resnet", ["train.accumulate=11"], "ask for 1 to 10 parts"),
        ("digits-resnet", ["split.blocks=40"], "cannot make 40 blocks of 6 layers"),
        ("digits-resnet", ["runtime.stages=5"], "ask for 1 to 4 stages"),
        ("digits-resnet", ["split.blocks=1", "runtime.stages=2"], "ask for 1 stage, or"),
        ("digits-resnet", ["method.name=dlg"], "Did you mean 'dgl'"),
        ("digits-resnet", ["method.name=backprop", "runtime.stages=2"], "ask for 1 stage."),
        ("digits-resnet", ["method.name=man", "method.lag=0"], "method.lag"),
        ("digits-resnet", ["method.lag=2"], "unknown option of method 'dgl' 'method.lag'"),
        ("digits-resnet", ["method.auxiliary=mlp-st"], "Did you mean 'mlp-sr'"),
        (
            "digits-resnet",
            ["method.name=sedona", "method.auxiliary_options.dept=3"],
            "Did you mean 'method.auxiliary_options.depth'",
        ),
        (
            "digits-resnet",
            ["method.name=sedona", "method.auxiliary_options.depth=9"],
            "sedona: depth must be 1 to 4, found 9",
        ),
        ("digits-resnet", ["method.name=lopt", "method.auxiliary=linear"], "method.auxiliary"),
        ("digits-resnet", ["method.name=backprop", "method.auxiliary=linear"], "method.auxiliary"),
        ("digits-resnet", ["method.name=backprop", "method.exits=line"], "Did you mean 'linear'"),
        (
            "digits-resnet",
            ["method.name=backprop", "method.exit_weight=-1"],
            "method.exit_weight must be at least 0 and finite, found -1",
        ),
        ("digits-resnet", ["method.name=contsup", "method.context=R2"], "method.context"),
        ("digits-resnet", ["model.name=resnet23"], "unknown model 'resnet23'"),
        ("digits-resnet", ["model.name=vit-tiny"], "--set 'model={name = \"vit-tiny\"}' leaves"),
        ("digits-resnet", ["data.name=digit"], "Did you mean 'digits'"),
        ("digits-resnet", ["runtime.devices=cuda"], "it has none"),
        ("cifar10-resnet32-dgl", ["data.root=ROOT"], "train-0.parquet"),
    ],
)
def test_what_cannot_be_has_exit_code_2(
    recipe: str,
    settings: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("train-0.parquet", "test-0.parquet"):
        (tmp_path / name).write_bytes(b"PAR1 this is no parquet file")
    base = TINY if recipe == "digits-resnet" else []
    args = [f"--set={setting.replace('ROOT', str(tmp_path))}" for setting in settings]
    out = tmp_path / "run"
    code, _, err = run_here(monkeypatch, capsys, "train", recipe, *base, *args, f"--out={out}")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not out.exists()


def test_without_a_command_there_is_help(monkeypatch, capsys) -> None:
    _, out, err = run_here(monkeypatch, capsys)
    assert "Start with: ppll train" in out + err


def test_a_network_in_one_block_has_no_plan(monkeypatch, capsys) -> None:
    args = ("plan", "digits-resnet", *TINY, "--set=method.name=backprop")
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 2
    assert "nothing to plan" in err


@pytest.mark.parametrize("args", [("train",), ("train", "digits-resnet", "--bogus"), ("fly",)])
def test_a_command_line_that_cannot_be_has_exit_code_2(args, monkeypatch, capsys) -> None:
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 2
    assert "Error" in err


def test_a_taken_run_folder_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "config.toml").touch()
    code, _, err = run_here(
        monkeypatch, capsys, "train", "digits-resnet", *TINY, f"--out={tmp_path}"
    )
    assert code == 2
    assert "already holds a run" in err


def test_resume_needs_to_know_where(monkeypatch, capsys) -> None:
    code, _, err = run_here(monkeypatch, capsys, "train", "digits-resnet", *TINY, "--resume")
    assert code == 2
    assert "--resume needs --out" in err


def test_a_change_is_allowed_only_of_a_run_that_goes_on(monkeypatch, capsys) -> None:
    change = "--allow-change=train.seed"
    code, _, err = run_here(monkeypatch, capsys, "train", "digits-resnet", *TINY, change)
    assert code == 2
    assert "--allow-change train.seed needs --resume" in err


def test_a_run_goes_on_and_is_exported(
    tmp_path: Path, environment: dict[str, str], monkeypatch, capsys
) -> None:
    # In brackets, which terminals' markup has, too.
    out, target = str(tmp_path / "run[lr=1]"), tmp_path / "model[b].safetensors"
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    run = ("train", "digits-resnet", *TINY, "--set=train.epochs=1", "--quiet", "--out", out)
    code, first, err = run_here(monkeypatch, capsys, *run)
    assert code == 0, err
    assert f"run folder: {out}\n" in first
    code, second, err = run_here(monkeypatch, capsys, *run, "--resume")
    assert (code, second) == (0, first), err
    sha = next(line for line in first.splitlines() if line.startswith("weights_sha256"))
    assert sha in second
    code, _, err = run_here(monkeypatch, capsys, *run, "--resume", "--set=train.seed=7")
    assert code == 2
    assert "--allow-change train.seed" in err
    code, printed, err = run_here(monkeypatch, capsys, "export", out, "--to", str(target))
    assert code == 0, err
    assert printed == f"{target}: the network after step 5\n"
    assert target.exists()


def test_the_best_checkpoint_is_evaluated_and_exported(tmp_path: Path, monkeypatch, capsys) -> None:
    out, target = str(tmp_path / "run"), tmp_path / "best.safetensors"
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    practice = ["data.mixup=0.2", "data.randaugment=3", "train.ema=0.9", "checkpoint.keep=best"]
    settings = [f"--set={setting}" for setting in ("train.epochs=3", *practice)]
    run = ("train", "digits-resnet", *TINY, *settings, "--quiet", "--out", out)
    code, _, err = run_here(monkeypatch, capsys, *run, "--set=data.validation=0")
    assert code == 2
    assert "data.validation is 0" in err
    code, printed, err = run_here(monkeypatch, capsys, *run, "--set=data.validation=15")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    best = f"{result['best_validation_accuracy']:.2%} (step {result['best_step']})"
    assert f"best validation accuracy: {best}" in printed
    code, printed, err = run_here(monkeypatch, capsys, "eval", out, "--best", "--json")
    evaluated = json.loads(printed)
    assert evaluated["step"] == result["best_step"]
    assert evaluated["validation_accuracy"] == result["best_validation_accuracy"]
    code, printed, err = run_here(monkeypatch, capsys, "eval", out, "--exits", "--best", "--json")
    assert json.loads(printed)["step"] == result["best_step"]
    code, printed, err = run_here(monkeypatch, capsys, "export", out, f"--to={target}", "--best")
    assert code == 0, err
    assert f"the network after step {result['best_step']}" in printed


@pytest.mark.parametrize(
    ("args", "warms"),
    [
        (["--stages=2"], True),
        (["--set=train.replicas=2"], True),
        (["--max-restarts=1"], True),
        (["--set=train.replicas=2", "--dry-run"], False),
        ([], False),
    ],
    ids=str,
)
def test_what_processes_come_from_is_warmed_where_there_are_several(
    args: list[str], warms: bool, monkeypatch, capsys
) -> None:
    warmed = []
    monkeypatch.setattr(fork_server, "warm_up", lambda: warmed.append(True))

    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("far enough")

    monkeypatch.setattr(trainer, "Trainer", refuse)
    assert run_here(monkeypatch, capsys, "train", "digits-resnet", *args)[0] == 2
    assert warmed == [True] * warms


def planned(tmp_path: Path, monkeypatch, capsys, *args: str) -> tuple[int, str, str]:
    monkeypatch.setenv("PPLL_CACHE", str(tmp_path / "cache"))
    costs = f"--costs={tmp_path / 'costs.json'}"
    return run_here(monkeypatch, capsys, "plan", "digits-resnet", *TINY, costs, *args)


def test_a_plan_predicts_and_writes_balanced_cuts(tmp_path: Path, monkeypatch, capsys) -> None:
    target, file = tmp_path / "new.toml", tmp_path / "plan.json"
    args = ("--set=split.cuts=balanced", "--stages=2", f"--write={target}")
    code, printed, err = planned(tmp_path, monkeypatch, capsys, *args)
    assert code == 0, err
    assert err.splitlines()[-1] == f"wrote {target}"
    assert load_recipe(target).runtime.stages == 2
    code, _, err = planned(tmp_path, monkeypatch, capsys, *args)
    assert code == 2
    assert "it exists already" in err
    for word in ("auxiliary", "samples/s", "zero-bubble", "PPLL is"):
        assert word in printed
    assert (tmp_path / "costs.json").exists()
    code, printed, err = planned(tmp_path, monkeypatch, capsys, "--json", str(file))
    assert code == 0, err
    assert len(json.loads(file.read_text())["rows"]) == 4
    code, printed, _ = planned(tmp_path, monkeypatch, capsys, "--set=split.cuts=balanced", "--json")
    cuts = json.loads(printed)["cuts"]
    assert load_recipe(target).split.cuts == tuple(cuts)
    code, _, err = run_here(monkeypatch, capsys, "train", str(target), "--dry-run", *TINY)
    assert code == 0, err
    code, _, err = run_here(
        monkeypatch, capsys, "train", "digits-resnet", *TINY, "--set=split.cuts=balanced"
    )
    assert code == 2
    assert "ppll plan RECIPE --write" in err


def test_a_plan_has_the_stages_of_the_recipe(costs: Path, monkeypatch, capsys) -> None:
    """As many as a run of it would have; of a recipe that asks for one, a stage a block."""
    for args, stages in (
        (["--set=runtime.stages=2"], 2),
        (["--set=runtime.stages=2", "--stages=1"], 1),
        (["--set=runtime.stages=1"], 4),
        ([], 4),
    ):
        _, printed, err = planned(costs.parent, monkeypatch, capsys, *args, "--json")
        assert len({row["stage"] for row in json.loads(printed)["rows"]}) == stages, err


def test_a_plan_chooses_replicas_and_writes_them(tmp_path: Path, monkeypatch, capsys) -> None:
    target = tmp_path / "new.toml"
    args = ("--processes=6", f"--write={target}")
    code, printed, err = planned(tmp_path, monkeypatch, capsys, *args)
    assert code == 0, err
    for word in ("a stage each", "(taken)", "Replicas of single blocks"):
        assert word in " ".join(printed.split())
    code, printed, err = planned(tmp_path, monkeypatch, capsys, "--processes=6", "--json")
    tree = json.loads(printed)
    assert (tree["choices"][0]["processes"], tree["choices"][0]["replicas"]) == (4, [1] * 4)
    assert tree["processes"] <= 6
    written = load_recipe(target)
    assert list(written.block_replicas) == [row["replicas"] for row in tree["rows"]]
    assert written.runtime.stages == 1 + tree["rows"][-1]["stage"]
    # What is written can be planned again with the same costs, and says the same.
    costs = f"--costs={tmp_path / 'costs.json'}"
    stages = f"--stages={written.runtime.stages}"
    code, printed, err = run_here(monkeypatch, capsys, "plan", str(target), costs, stages, "--json")
    assert code == 0, err
    assert json.loads(printed)["samples_per_second"] == tree["samples_per_second"]


def test_a_network_from_python_is_not_planned_here(tmp_path: Path, monkeypatch, capsys) -> None:
    setting = "--set=model.name=(given from Python)"
    for command in (["plan"], ["train", "--dry-run"]):
        code, _, err = run_here(monkeypatch, capsys, *command, "digits-resnet", *TINY, setting)
        assert code == 2
        assert "ppll.Trainer(recipe, model=...)" in err
        assert 'model.name = "module:function"' in err


def test_a_plan_of_unlike_replicas(tmp_path: Path, monkeypatch, capsys) -> None:
    args = ("--set=train.replicas=[2, 1, 1, 1]",)
    code, printed, err = planned(tmp_path, monkeypatch, capsys, *args)
    assert code == 0, err
    text = " ".join(printed.split())
    assert "5 processes, 4 stage(s) with 2,1,1,1 replica(s)" in text
    assert "Updates are not shared" in text


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured for the recipe that is planned here."""
    file = tmp_path_factory.mktemp("plan") / "costs.json"
    measure(load_recipe("digits-resnet", TINY[1::2]), repeats=1).write(file)
    return file


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set=model.width=8"], "measured for model.width = 4"),
        (["--write=new"], "a recipe is a .toml file"),
        (["--processes=0"], "greater than or equal to 1"),
        (["--costs=/proc/costs.json"], "cannot write /proc/costs.json: No such file"),
        (["--write=nowhere/new.toml"], "cannot write nowhere/new.toml: No such file"),
        (["--processes=4", "--stages=2"], "--processes chooses the stages"),
        (["--set=train.replicas=[2, 1, 1, 1]", "--stages=1"], "ask for 2 to 4 stages"),
        (["--set=train.replicas=[2, 3, 1, 1]"], "one divides the other"),
        (["--stages=5"], "ask for 1 to 4"),
        (["--bandwidth=0"], "bandwidth"),
        (["--latency=-1"], "latency"),
        (["--set=split.blocks=99", "--set=split.cuts=balanced"], "blocks"),
        (["--memory-limit=nan"], "--memory-limit is nan: give a finite number, at least 0"),
        (["--memory-limit=100"], "--memory-limit chooses among balanced cuts"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    args: list[str], message: str, costs: Path, monkeypatch, capsys
) -> None:
    code, _, err = planned(costs.parent, monkeypatch, capsys, *args)
    assert code == 2, err
    assert message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--systems=ppl"], "Did you mean 'ppll'"),
        (["--forward-ms=-1"], "forward"),
        (["--payload-mib=inf"], "--payload-mib is inf: give a finite number, at least 0"),
        (["--microbatches=4,x"], "cannot read '4,x'"),
        (["--systems=gpipe", "--microbatches=0"], "micro-batch"),
        (["--costs=nothing.json"], "cannot read the costs nothing.json"),
        (["--set=model.depth=20"], "--set and --slow-down are for devices as fast as measured"),
        (["--slow-down=2"], "--set and --slow-down are for devices as fast as measured"),
    ],
)
def test_what_cannot_be_emulated_is_refused(
    args: list[str], message: str, monkeypatch, capsys
) -> None:
    code, _, err = run_here(monkeypatch, capsys, "bench", "emulate", "--batches=1", *args)
    assert code == 2, err
    assert message in err


def test_settings_hold_for_what_costs_are_emulated_without_a_recipe(
    costs: Path, monkeypatch, capsys
) -> None:
    args = ("bench", "emulate", f"--costs={costs}", "--stages=2", "--set=model.width=8")
    code, _, err = run_here(monkeypatch, capsys, *args)
    assert code == 2, err
    assert "measured for model.width = 4, but the recipe has 8" in err


def test_the_doctor_says_what_a_machine_can_do(monkeypatch, capsys) -> None:
    from ppll import doctor

    good = doctor.Finding("disk", "ok", "room enough")
    bad = doctor.Finding("memory", "problem", "none [left]", "get some")
    monkeypatch.setattr(doctor, "examine", lambda: [good])
    code, printed, _ = run_here(monkeypatch, capsys, "doctor")
    assert (code, printed.split()) == (0, ["ok", "disk", "room", "enough", "Runs", "work", "here."])
    monkeypatch.setattr(doctor, "examine", lambda: [good, bad])
    code, printed, _ = run_here(monkeypatch, capsys, "doctor", "--json")
    assert code == 1
    assert json.loads(printed)["rows"][1] == {
        "name": "memory",
        "state": "problem",
        "found": "none [left]",
        "advice": "get some",
    }
    assert "none [left]\n        get some" in run_here(monkeypatch, capsys, "doctor")[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_saves_nothing_with_a_word(number: int, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ppll.doctor.examine", lambda: signal.raise_signal(number))
    code, _, err = run_here(monkeypatch, capsys, "doctor")
    assert (code, err) == (130, "Interrupted: stopped at once.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_an_image_is_decoded_is_not_put_down_to_the_image(
    number: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    image = pytest.importorskip("PIL.Image")
    for split, name in itertools.product(("train", "test"), ("cat", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        image.new("L", (8, 8)).save(tmp_path / split / name / "a.png")
    monkeypatch.setattr(
        "PIL.PngImagePlugin.PngImageFile.verify", lambda _: signal.raise_signal(number)
    )
    data = {"name": "image-folder", "root": tmp_path, "size": 8}
    settings = [f"--set=data.{key}={value}" for key, value in data.items()]
    code, _, err = run_here(monkeypatch, capsys, "plan", "digits-resnet", *settings)
    assert (code, err.splitlines()[1:]) == (130, ["Interrupted: stopped at once."]), err


@pytest.mark.parametrize("command", ["methods", "models", "datasets", "recipes", "env"])
def test_lists_are_tables_and_json(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(zoo, "_share", lambda name, of_network: None)  # takes seconds
    assert run_here(monkeypatch, capsys, command)[1]
    tree = json.loads(run_here(monkeypatch, capsys, command, "--json")[1])
    assert command == "env" or all("name" in row for row in tree["rows"])


def test_models_of_libraries_are_listed(monkeypatch, capsys) -> None:
    rows = json.loads(run_here(monkeypatch, capsys, "models", "--json")[1])["rows"]
    assert {"resnet32", "gpt", "timm:NAME", "transformers:NAME"} <= {row["name"] for row in rows}


def test_dry_run_trains_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    out = f"--out={tmp_path / 'run'}"
    code, _, err = run_here(monkeypatch, capsys, "train", "digits-resnet", *TINY, "--dry-run", out)
    assert code == 0
    assert "stage3_0 .. head" in err
    assert not (tmp_path / "run").exists()


def test_dry_run_of_a_resume_checks_it(tmp_path: Path, monkeypatch, capsys) -> None:
    out = str(tmp_path / "run")
    run = ("train", "digits-resnet", *TINY, "--set=train.max_steps=3", "--out", out)
    dry = (*run, "--resume", "--dry-run")
    assert "would begin at step 0" in run_here(monkeypatch, capsys, *dry)[2]
    assert not Path(out).exists()
    code, _, err = run_here(monkeypatch, capsys, *run, "--quiet")
    assert code == 0, err
    code, printed, err = run_here(monkeypatch, capsys, "eval", out)
    assert (code, printed.startswith("the network after step 3\ntest accuracy, exit")) == (0, True)
    assert "training" not in printed
    before = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*")}
    assert "finished already at step 3" in run_here(monkeypatch, capsys, *dry)[2]
    assert {path: path.stat().st_mtime_ns for path in Path(out).rglob("*")} == before
    for more in ((), ("--dry-run",)):  # The refusal comes before the table of blocks.
        code, _, err = run_here(monkeypatch, capsys, *run, "--resume", *more, "--set=train.seed=7")
        assert (code, err.startswith("RecipeError: the run was trained by another")) == (2, True)
    for block in Path(out).glob("checkpoints/*/block-00.safetensors"):
        block.write_bytes(b"")
    code, _, err = run_here(monkeypatch, capsys, *dry)
    assert (code, "no checkpoint is whole" in err) == (1, True)


@pytest.mark.processes
def test_help_needs_no_torch(environment: dict[str, str]) -> None:
    program = (
        "import sys; sys.argv = ['ppll', '--help']\n"
        "from ppll.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=30)

"""Kill a run in its middle, let it go on elsewhere, and get the bits of a run that never broke."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ppll

SETTINGS = ["train.epochs=3", "checkpoint.every_steps=10"]


def start_and_kill(out: Path) -> None:
    """Start a run on two stages and kill it once it has saved its 20th step."""
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "ppll", "train", "digits-resnet", "--stages", "2"]
    process = subprocess.Popen([*command, "--out", str(out), "--quiet", *options])
    while not (out / "checkpoints" / "step-00000020" / "manifest.json").exists():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # no warning, no chance to save
    process.wait()


def main() -> None:
    recipe = ppll.load_recipe("digits-resnet", SETTINGS)
    unbroken = ppll.Trainer(recipe, out="runs/unbroken").fit()
    start_and_kill(Path("runs/broken"))
    # The ranks notice within moments that their launcher is gone. One stage now, not two.
    resumed = ppll.Trainer(recipe, out="runs/broken", resume=True).fit()
    print(f"unbroken: {unbroken.weights_sha256}")
    print(f"resumed:  {resumed.weights_sha256}")
    print("the same" if unbroken.weights_sha256 == resumed.weights_sha256 else "different!")


if __name__ == "__main__":
    main()

"""Where a run keeps what it makes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

import pydantic

from ppll.claim import LOCK_NAME
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.durable import open_plain, write_whole
from ppll.environment import code_digest, describe_environment
from ppll.errors import RecipeError, RunFolderError, first_problem
from ppll.json_lines import read_rows
from ppll.recipe_text import read_toml

__all__ = ["PROOF_NAME", "RunFolder", "default_folder", "take_free"]

PROOF_NAME = "meeting"
"""By which processes of several hosts find out that they see the same folder."""


def _as_now(facts: Any) -> Any:
    """Facts as they are written today, of those that were written before some were known."""
    if isinstance(facts, dict) and facts.get("holds_tokens"):
        # Then every sample of tokens had a target a token.
        return {"num_tokens": facts.get("num_classes"), "predicts_tokens": True, **facts}
    return facts


_FACTS: Final = pydantic.TypeAdapter(Annotated[DataFacts, pydantic.BeforeValidator(_as_now)])
_STUDY = "study.json"
"""In the folder of a study, whose runs lie below."""
_MOST_LISTED = 3
_COUNTS = (
    *("processor", "cpu_capability", "gpus"),
    *("data_sha256", "model_sha256", "method_sha256", "loss_sha256", "optimizer_sha256"),
)
"""Of the environment, what the bits depend on besides torch."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; see the attributes for what lies where."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Self:
        """The folder at ``path``, made where it is not there.

        Raises:
            RunFolderError: It cannot be made.
        """
        folder = cls(path.absolute())
        try:
            for part in (folder.checkpoints, folder.logs, folder.metric_parts):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {path}: {error}.") from None
        return folder

    def describe(self, recipe: Recipe, facts: DataFacts) -> list[str]:
        """Write down what the run is and what it runs on.

        Returns:
            What was otherwise when it was written last, as far as bits depend on it.
        """
        environment = describe_environment()
        model = recipe.model.name if recipe.model.is_own else ""  # Of libraries there are versions.
        named = {
            "data": recipe.data.name,
            "model": model,
            "method": recipe.method.name,
            "loss": recipe.loss.name,
            "optimizer": recipe.optimizer.name,
        }
        for what, name in named.items():
            module, is_own, _ = name.partition(":")
            if is_own:
                environment[f"{what}_sha256"] = code_digest(module)
        differences = _differences(self.read_environment(), environment)
        write_whole(self.config, recipe.to_toml().encode())
        _write_json(self.environment, environment)
        _write_json(self.facts, dataclasses.asdict(facts))
        return differences

    def read_environment(self) -> dict[str, Any]:
        """What the run ran on; nothing where that cannot be read."""
        try:
            with open_plain(self.environment) as file:
                found = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def read_facts(self) -> DataFacts:
        """What the run's network must know of its data.

        Raises:
            RunFolderError: It cannot be read.
        """
        try:
            return _FACTS.validate_json(self.facts.read_bytes())
        except OSError as error:
            raise RunFolderError(f"cannot read {self.facts}: {error.strerror}.") from None
        except pydantic.ValidationError as error:
            raise RunFolderError(f"cannot read {self.facts}: {first_problem(error)}.") from None

    def note(self, **entry: Any) -> None:
        """Add a line to the run's history: one a start.

        What a start left unfinished that was killed here keeps a line of its own.
        """
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **entry}
        before = self.history.read_bytes() if self.history.exists() else b""
        with self.history.open("a", encoding="utf-8") as file:
            file.write("\n" * (before[-1:] not in (b"", b"\n")) + json.dumps(entry) + "\n")

    def read_start_steps(self) -> list[int]:
        """The step that each start began from, the oldest first."""
        if not self.history.exists():
            return []
        return [row["step"] for row in read_rows(self.history) if isinstance(row.get("step"), int)]

    def check_free(self) -> None:
        """Refuse a folder that holds anything.

        Raises:
            RunFolderError: It does, or it is a file.
        """
        if not self.path.exists() or self._is_unused():
            return
        if self.config.exists():
            raise RunFolderError(
                f"{self.path} already holds a run: choose another folder with --out, go on with "
                f"this run with --resume (out=..., resume=True in Python), or remove this one."
            )
        found = "holds files that are no run's" if self.path.is_dir() else "is a file"
        raise RunFolderError(
            f"{self.path} {found}: choose another folder with --out, one that is new or empty."
        )

    def _is_unused(self) -> bool:
        """Whether there is nothing but what a start leaves that ended before it had begun."""
        if not self.path.is_dir():
            return False
        parts = {self.checkpoints, self.logs, self.metric_parts}
        left = [p for p in self.path.iterdir() if p.name not in (LOCK_NAME, PROOF_NAME)]
        return all(p in parts and p.is_dir() and not any(p.iterdir()) for p in left)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a run that was made before.

        Raises:
            RunFolderError: It is not one.
        """
        folder = cls(path.absolute())
        if not os.path.isfile(folder.config):  # also where no file can have such a name
            raise RunFolderError(_no_run(path))
        return folder

    def read_recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            RunFolderError: It cannot be read.
        """
        try:
            return Recipe.from_dict(read_toml(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecipeError) as error:
            raise RunFolderError(f"cannot read {self.config}: {error}") from None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        _write_json(self.result, result)

    @property
    def to_go_on(self) -> str:
        """Where the run lies and what to do to go on with it, as the end of a sentence."""
        return (
            f"{self.path}. The same with --resume and this --out goes on (resume=True and out=... "
            f"in Python)."
        )

    @property
    def after_failure(self) -> str:
        """What to say below the cause of a failure."""
        return f"Its newest checkpoint is in {self.to_go_on}"

    @property
    def config(self) -> Path:
        """The whole recipe, defaults included."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """What the run ran on."""
        return self.path / "environment.json"

    @property
    def facts(self) -> Path:
        """Shape, classes and normalisation of the data."""
        return self.path / "data.json"

    @property
    def history(self) -> Path:
        """A JSON object a start: when, from which step, on how many stages, what had changed."""
        return self.path / "history.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """What every rank printed."""
        return self.path / "logs"

    @property
    def metric_parts(self) -> Path:
        """Every rank's metrics, merged at the end."""
        return self.path / "metrics"

    @property
    def traces(self) -> Path:
        """Every rank's spans, merged into the timeline at the end."""
        return self.path / "traces"

    def batch_ends(self, rank: int) -> Path:
        """When a rank's batches had ended, where ``track.batch_ends`` asks for it."""
        return self.traces / f"ends-{rank}.json"

    @property
    def timeline(self) -> Path:
        """All ranks' spans on one clock, to be opened in Perfetto."""
        return self.path / "timeline.json"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard, where ``track.tensorboard`` asks for them."""
        return self.path / "tensorboard"

    @property
    def metrics(self) -> Path:
        """All ranks' metrics, a JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def user_data(self) -> Path:
        """Arrays that were given from Python, for the rank that loads them."""
        return self.path / "data.safetensors"

    @property
    def result(self) -> Path:
        """What the run came to."""
        return self.path / "result.json"


def _no_run(path: Path) -> str:
    """What to say of a path at which no run lies."""
    if not os.path.exists(path):
        return f"there is no run folder {path}{_listed(path.parent.glob('*/config.toml'))}."
    if (path / _STUDY).is_file():
        return (
            f"{path} is a study, not a run: its tables are {path / 'study.md'} and {path / _STUDY}"
            f"{_listed(path.glob('*/*/*/config.toml'))}."
        )
    return (
        f"{path} is not a run folder: it has no config.toml{_listed(path.glob('*/config.toml'))}."
    )


def _listed(configs: Iterable[Path]) -> str:
    """The runs with these recipes, the newest first, as the end of a sentence."""
    newest = sorted(configs, key=lambda config: config.stat().st_mtime, reverse=True)[:_MOST_LISTED]
    runs = ", ".join(str(config.parent) for config in newest)
    return f"; the newest runs there are {runs}" if runs else ""


def default_folder(name: str) -> Path:
    """The run folder of a recipe that is started now: ``runs/<recipe>-<time>``."""
    return Path("runs") / f"{Path(name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def take_free(path: Path) -> Path:
    """Make a folder that was not there: ``path``, or the same with -2, -3 and so on behind it.

    Of runs that start in the same second, each gets its own.

    Raises:
        RunFolderError: It cannot be made.
    """
    names = (f"-{number}" if number > 1 else "" for number in itertools.count(1))
    for folder in (path.with_name(path.name + ending) for ending in names):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except OSError as error:
            if folder.exists():
                continue
            raise RunFolderError(f"cannot make the run folder {folder}: {error}.") from None
        return folder
    raise AssertionError("numbers have no end")


def _write_json(path: Path, tree: Any) -> None:
    write_whole(path, (json.dumps(tree, indent=2) + "\n").encode())


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the bits of a run depend on and has changed, in words."""
    if not before:
        return []
    pairs = {key: (before[key], now.get(key)) for key in _COUNTS if key in before}
    pairs["torch"] = tuple(e.get("packages", {}).get("torch") for e in (before, now))
    return [f"{key} was {old!r}, is {new!r}" for key, (old, new) in pairs.items() if old != new]

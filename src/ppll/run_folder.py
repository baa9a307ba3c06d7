"""Where a run keeps what it makes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ppll.config import Recipe
from ppll.environment import describe_environment
from ppll.errors import RecipeError, RunFolderError

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; see the attributes for what lies where."""

    path: Path

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Self:
        """Make a run's folder and write down what the run is.

        Raises:
            RunFolderError: There is something already, or it cannot be written.
        """
        folder = cls(path.absolute())
        folder.check_free()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            for part in (folder.checkpoints, folder.logs, folder.metric_parts):
                part.mkdir()
            folder.config.write_text(recipe.to_toml(), encoding="utf-8")
            _write_json(folder.environment, describe_environment())
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {path}: {error}.") from None
        return folder

    def check_free(self) -> None:
        """Refuse a folder that holds anything.

        Raises:
            RunFolderError: It does, or it is a file.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunFolderError(
                f"{self.path} already holds {'a run' if self.config.exists() else 'files'}: "
                f"choose another folder with --out, or remove this one."
            )

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a run that was made before.

        Raises:
            RunFolderError: It is not one.
        """
        folder = cls(path.absolute())
        if not folder.config.is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.toml.")
        return folder

    def read_recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            RunFolderError: It cannot be read.
        """
        try:
            return Recipe.from_dict(tomllib.loads(self.config.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecipeError) as error:
            raise RunFolderError(f"cannot read {self.config}: {error}") from None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        _write_json(self.result, result)

    @property
    def config(self) -> Path:
        """The whole recipe, defaults included."""
        return self.path / "config.toml"

    @property
    def environment(self) -> Path:
        """What the run ran on."""
        return self.path / "environment.json"

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


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")

"""A run's metrics as event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppll.callbacks import Callback
from ppll.config import Recipe
from ppll.errors import UsageError
from ppll.extras import pip_install
from ppll.result import Result
from ppll.run_folder import RunFolder

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes ``KIND/loss/block-NN`` and ``KIND/accuracy/block-NN`` by step.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                f"track.tensorboard = true needs tensorboard, which is not installed: "
                f"{pip_install('tensorboard')}, or leave the key out."
            ) from None
        self._open = SummaryWriter
        self._writer: Any = None

    def on_start(self, folder: Path, recipe: Recipe) -> None:
        """Open a file of this start beside those of earlier ones."""
        self._writer = self._open(str(RunFolder(folder).tensorboard))
        self._writer.add_text("recipe", f"```toml\n{recipe.to_toml()}\n```")

    def on_metrics(self, row: Mapping[str, Any]) -> None:
        """Write what is a number."""
        for field in ("loss", "accuracy"):
            if row[field] is not None:
                name = f"{row['kind']}/{field}/block-{row['block']:02d}"
                self._writer.add_scalar(name, row[field], row["step"])

    def on_end(self, result: Result | None) -> None:
        """Write how busy the stages were, and close."""
        if result is not None:
            for stage, share in enumerate(result.busy_fraction):
                self._writer.add_scalar(f"busy/stage-{stage:02d}", share, result.step)
        self._writer.close()

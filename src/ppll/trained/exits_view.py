"""What the exits of a network are worth, as tables that a person can read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ppll.trained.exits import ExitReport

__all__ = ["show_exits"]


def show_exits(console: Console, report: ExitReport) -> None:
    """Print the exits and their average, then a column a threshold."""
    console.print(f"{report.num_samples} test samples, step {report.step}\n", highlight=False)
    console.print(_exits(report))
    console.print()
    console.print(_trades(report))


def _exits(report: ExitReport) -> Table:
    table = _table("exit", "accuracy", "loss")
    rows = zip(_names(report), report.exit_accuracy, report.exit_loss, strict=True)
    for name, accuracy, loss in rows:
        table.add_row(name, _percent(accuracy), _number(loss))
    average = _percent(report.average_accuracy), _number(report.average_loss)
    table.add_row("all averaged", *average)
    return table


def _trades(report: ExitReport) -> Table:
    """Silent blocks have no row: nothing leaves behind them."""
    trades = report.trades
    table = _table("threshold", *(f"{trade.threshold:g}" for trade in trades))
    table.add_row("accuracy", *(_percent(trade.accuracy) for trade in trades))
    table.add_row("blocks run", *(f"{trade.mean_blocks:.2f}" for trade in trades))
    shares = [trade.compute_share for trade in trades]
    table.add_row("compute", *("-" if share is None else f"{share:.0%}" for share in shares))
    for index, name in enumerate(_names(report)):
        if report.exit_accuracy[index] is not None:
            leaving = [trade.exit_share[index] for trade in trades]
            table.add_row(f"leave at {name}", *(f"{share:.1%}" for share in leaving))
    return table


def _names(report: ExitReport) -> list[str]:
    num_blocks = len(report.exit_accuracy)
    return [*(f"block {index}" for index in range(num_blocks - 1)), "final output"]


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _percent(share: float | None) -> str:
    return "no prediction" if share is None else f"{share:.2%}"


def _number(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"

"""What the exits of a network are worth, as tables that a person can read."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from ppll.tables import print_table
from ppll.trained.exits import ExitReport

__all__ = ["show_exits"]


def show_exits(console: Console, report: ExitReport) -> None:
    """Print the exits and their average, then a column a threshold."""
    console.print(f"{report.num_samples} test samples, step {report.step}\n", highlight=False)
    print_table(console, ("exit", "accuracy", "loss"), list(_exits(report)), left=("exit",))
    console.print()
    thresholds = [f"{trade.threshold:g}" for trade in report.trades]
    print_table(console, ["threshold", *thresholds], list(_trades(report)), left=("threshold",))


def _exits(report: ExitReport) -> Iterator[list[str]]:
    rows = zip(_names(report), report.exit_accuracy, report.exit_loss, strict=True)
    for name, accuracy, loss in rows:
        yield [name, _percent(accuracy), _number(loss)]
    yield ["all averaged", _percent(report.average_accuracy), _number(report.average_loss)]


def _trades(report: ExitReport) -> Iterator[list[str]]:
    """Silent blocks have no row: nothing leaves behind them."""
    trades = report.trades
    yield ["accuracy", *(_percent(trade.accuracy) for trade in trades)]
    yield ["blocks run", *(f"{trade.mean_blocks:.2f}" for trade in trades)]
    shares = [trade.compute_share for trade in trades]
    yield ["compute", *("-" if share is None else f"{share:.0%}" for share in shares)]
    for index, name in enumerate(_names(report)):
        if report.exit_accuracy[index] is not None:
            leaving = [trade.exit_share[index] for trade in trades]
            yield [f"leave at {name}", *(f"{share:.1%}" for share in leaving)]


def _names(report: ExitReport) -> list[str]:
    num_blocks = len(report.exit_accuracy)
    return [*(f"block {index}" for index in range(num_blocks - 1)), "final output"]


def _percent(share: float | None) -> str:
    return "no prediction" if share is None else f"{share:.2%}"


def _number(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"

"""``WAY COMMAND...``: ppll, with gradients added up beside the backward pass or after it."""

from __future__ import annotations

import sys

from ppll.cli import app
from ppll.replicas.exchange import Exchange


def main() -> None:
    way = sys.argv.pop(1)
    if way == "after":  # Without a beginning all waits for the end.
        Exchange.begin = lambda _: None  # type: ignore[method-assign]
    app.main()


if __name__ == "__main__":
    main()

"""``python -m ppll`` and the ``ppll`` command."""

from __future__ import annotations

from typing import NoReturn

from ppll.interrupts import leaving_at_once

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line."""
    with leaving_at_once():
        from ppll.cli import app as cli
    cli.main()


if __name__ == "__main__":
    main()

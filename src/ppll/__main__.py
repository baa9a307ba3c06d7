"""``python -m ppll`` and the ``ppll`` command."""

from __future__ import annotations

from typing import NoReturn

from ppll.hosts.departure import bound_to_agent
from ppll.interrupts import leaving_at_once
from ppll.torchrun import started_by_torchrun

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line."""
    with leaving_at_once():
        if started_by_torchrun():  # Its agent may be gone before torch is imported.
            bound_to_agent()
        from ppll.cli import app as cli
    cli.main()


if __name__ == "__main__":
    main()

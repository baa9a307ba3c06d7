"""``python -m ppll`` and the ``ppll`` command."""

from __future__ import annotations

from ppll.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()

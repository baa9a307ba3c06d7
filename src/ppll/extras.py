"""Packages that some data sets and views need, and how they are installed (no torch)."""

from __future__ import annotations

from typing import Final

__all__ = ["PACKAGES", "pip_install"]

PACKAGES: Final = {
    "scikit-learn": ">=1.3",
    "pyarrow": ">=14",
    "pillow": ">=10",
    "datasets": ">=2.19",
    "matplotlib": ">=3.8",
    "tensorboard": ">=2.16",
}
"""Which versions, as the extras of ``pyproject.toml`` have them."""


def pip_install(*names: str) -> str:
    """The command that brings packages, however PPLL itself was installed.

    Example:
        >>> pip_install("pyarrow", "pillow")
        "pip install 'pyarrow>=14' 'pillow>=10'"
    """
    wanted = (f"'{name}{PACKAGES[name]}'" for name in names)
    return f"pip install {' '.join(wanted)}"

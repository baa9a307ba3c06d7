"""Methods whose local loss is the task loss on an auxiliary classifier's prediction."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ppll.auxiliary import auxiliaries
from ppll.methods.base import BlockSite, Method

__all__ = ["HeadMethod"]


class HeadMethod(Method):
    """A classifier of its own behind every block; which one is the method's choice or the recipe's.

    Args:
        auxiliary: Name of the auxiliary network; the method's own where it is not given.
        auxiliary_options: Options of that network, where it has some.
    """

    default_auxiliary: ClassVar[str]

    def __init__(
        self, *, auxiliary: str | None = None, auxiliary_options: dict[str, Any] | None = None
    ) -> None:
        self.auxiliary = self.default_auxiliary if auxiliary is None else auxiliary
        self.auxiliary_options = auxiliary_options or {}
        auxiliaries.check(self.auxiliary, self.auxiliary_options)

    def build_auxiliary(self, site: BlockSite) -> nn.Module:
        """The classifier for the features at this site."""
        return auxiliaries.build(self.auxiliary, self.auxiliary_options, site)

"""What every section of a recipe is, and the kinds of values that its keys take (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import pydantic
from pydantic import Field

from ppll.recipe_text import shown

__all__ = [
    "Checked",
    "Count",
    "Factor",
    "NamedSection",
    "NonNegative",
    "Number",
    "Positive",
    "Section",
]
__all__ += ["Share", "UsablePath"]

Count = Annotated[int, Field(ge=1, lt=2**63)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _usable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError(f"no path holds a zero byte, found {str(path)!r}")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"~ in a path stands for a home folder, but that of {str(path)!r} is not known: name "
            f"the folder in full"
        ) from None


UsablePath = Annotated[Path, pydantic.AfterValidator(_usable)]

Factor = Annotated[float, Field(ge=0, le=1)]


def _takes_bool(annotation: Any) -> bool:
    allowed = (annotation, *get_args(annotation))
    takes_bool = any(choice is bool or isinstance(choice, bool) for choice in allowed)
    return takes_bool or annotation in (Any, object)


class Checked(pydantic.BaseModel):
    """Fields of which none takes true or false for a number."""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Left to pydantic it would be 1."""
        found = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in found):
            assert info.field_name is not None
            if not _takes_bool(cls.model_fields[info.field_name].annotation):
                raise ValueError(f"must not be true or false, found {shown(value)}")
        return value


class Section(Checked):
    """A frozen part of a recipe; unknown keys are refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class NamedSection(Section):
    """A section that names a thing of a shelf and holds its options."""

    model_config = pydantic.ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the named thing."""
        return dict(self.model_extra or {})

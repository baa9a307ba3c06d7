"""Models of other libraries by name: ``"timm:resnet18"``, ``"torchvision:vit_b_16"``, ...

The libraries are no part of PPLL: each is imported when a recipe names it. Options of the recipe go
to the library as they are; what follows from the data is filled in. A library draws the first
values in one go, from the run's seed and the model's name; they depend on nothing else of a recipe.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ppll.errors import RecipeError, unknown_name
from ppll.models.options import image_shape, token_shape
from ppll.numerics import own_generator
from ppll.randomness import fold

__all__ = ["LIBRARIES", "build_of_library", "check_of_library", "is_of_library"]


@dataclass(frozen=True)
class _Request:
    """A model that is asked for.

    Attributes:
        package: The library, imported.
        name: What the library calls the model.
        options: What the recipe gives.
        input_shape: Of one sample.
        num_classes: Classes, or different tokens.
    """

    package: Any
    name: str
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    num_classes: int


def _timm(request: _Request) -> nn.Module:
    if not request.package.is_model(request.name):
        near = difflib.get_close_matches(request.name, request.package.list_models())
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise RecipeError(f"timm has no model {request.name!r}.{hint} timm.list_models() has all.")
    channels, *size = image_shape(f"timm:{request.name}", request.input_shape)
    filled: dict[str, Any] = {"in_chans": channels, "num_classes": request.num_classes}
    # Models of a fixed size, such as vision transformers, must be told another one.
    if request.package.models.get_pretrained_cfg_value(request.name, "fixed_input_size"):
        filled["img_size"] = tuple(size)
    model: nn.Module = request.package.create_model(request.name, **{**filled, **request.options})
    return model


def _torchvision(request: _Request) -> nn.Module:
    _, height, _ = image_shape(f"torchvision:{request.name}", request.input_shape)
    build = request.package.models.get_model_builder(request.name)
    filled: dict[str, Any] = {"num_classes": request.num_classes}
    if build.__module__.endswith(".vision_transformer"):
        filled["image_size"] = height
    model: nn.Module = build(**{**filled, **request.options})
    return model


def _transformers(request: _Request) -> nn.Module:
    token_shape(f"transformers:{request.name}", request.input_shape)
    auto = request.package.AutoConfig
    known = auto.for_model(request.name)
    for key in request.options:
        if not hasattr(known, key):
            raise RecipeError(
                f"model.{key} is no option of transformers' {request.name!r} "
                f"({type(known).__name__} lists them)."
            )
    # What marks the ends of a text may lie outside of a small vocabulary.
    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    filled = {"vocab_size": request.num_classes, **marks, **request.options}
    config = auto.for_model(request.name, **filled)
    model: nn.Module = request.package.AutoModelForCausalLM.from_config(config)
    return model


LIBRARIES: Final[dict[str, tuple[Callable[[_Request], nn.Module], str]]] = {
    "timm": (_timm, "vision models of timm, such as timm:vit_small_patch16_224"),
    "torchvision": (_torchvision, "vision models of torchvision, such as torchvision:resnet18"),
    "transformers": (_transformers, "Hugging Face language models, such as transformers:gpt2"),
}
"""Builder and summary of each library whose models a recipe may name."""


def is_of_library(name: str) -> bool:
    """Whether ``model.name`` names a model of another library."""
    return ":" in name


def check_of_library(name: str) -> None:
    """Let a model's name pass if its library is there.

    Raises:
        RecipeError: The library is unknown, not installed, or does not fit this torch.
    """
    library, _, _ = name.partition(":")
    if library not in LIBRARIES:
        raise RecipeError(unknown_name("library of models", library, LIBRARIES))
    _import(library)


def build_of_library(
    name: str,
    options: Mapping[str, Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
) -> nn.Module:
    """A library's model with its first values.

    Args:
        name: ``LIBRARY:MODEL``.
        options: For the library's own builder.
        input_shape: Of one sample.
        num_classes: Classes of images, or different tokens of text.
        seed: Of the run.

    Raises:
        RecipeError: The library cannot be had, or does not build such a model.
    """
    check_of_library(name)
    library, _, model = name.partition(":")
    request = _Request(_import(library), model, options, input_shape, num_classes)
    try:
        with own_generator():
            torch.default_generator.manual_seed(fold(seed, name) % 2**32)
            return LIBRARIES[library][0](request)
    except RecipeError:
        raise
    # What a library raises of a name or an option that it does not know is its own affair.
    except Exception as error:
        raise _refused(library, error, f"model.name = {name!r}: ") from error


def _import(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise _refused(library, error, "") from error
        raise RecipeError(
            f"model.name: the package {library} is not installed: pip install {library}."
        ) from None
    except Exception as error:
        raise _refused(library, error, "") from error


def _refused(library: str, error: BaseException, what: str) -> RecipeError:
    cause: BaseException | None = error
    while cause is not None:
        # Torchvision's message when its compiled part is for another torch.
        if "torchvision::" in str(cause):
            return RecipeError(
                f"model.name: {library} needs torchvision, and the one that is installed is built "
                f"for another torch than {torch.__version__} ({cause}): install its build for this "
                f"one (beside a torch for processors, from "
                f"https://download.pytorch.org/whl/cpu), or uninstall it if only transformers is "
                f"wanted."
            )
        cause = cause.__cause__ or cause.__context__
    return RecipeError(f"{what}{library} says {type(error).__name__}: {error!s:.300}")

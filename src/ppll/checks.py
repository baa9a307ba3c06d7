"""What must hold before a run begins, so that nothing is found out an hour later."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import nn

from ppll.blocks.blueprint import Blueprint, build_method
from ppll.blocks.compiling import missing_compiler
from ppll.config import Recipe
from ppll.data import PreparedData, check_dataset_name
from ppll.devices import check_devices, device_of
from ppll.errors import ModelError, RecipeError, RunFolderError, UsageError
from ppll.job import refuse_given
from ppll.loss_trial import try_loss
from ppll.method_trial import try_method
from ppll.models import models, qualified
from ppll.models.libraries import check_of_library
from ppll.models.own_model import check_own_model
from ppll.optimizer_trial import try_optimizer
from ppll.placement import mesh_of
from ppll.run_folder import RunFolder
from ppll.sections import ModelConfig
from ppll.smallest_message import check_smallest_message, who_needs_more
from ppll.task_loss import build_task_loss

__all__ = [
    "check_compiler",
    "check_concurrency",
    "check_disk",
    "check_layout",
    "check_messages",
    "check_names",
    "check_recipe",
    "check_resuming",
    "check_sharding",
    "check_start",
    "checkpoint_bytes",
    "has_batch_norm",
]

_FEWEST_CHANNELS: Final = 8
"""As many as oneDNN takes at once with AVX2."""


def check_recipe(recipe: Recipe, *, own_model: bool) -> None:
    """Refuse what can be told of the recipe alone, before any data is read.

    Raises:
        RecipeError: A device, a name, an option or a compiler is not there, or the method cannot
            what the recipe asks for.
    """
    check_devices(recipe)
    check_names(recipe, own_model=own_model)
    check_compiler(recipe)
    check_concurrency(recipe)
    check_sharding(recipe)


def check_resuming(*, resume: bool, out: object, allow_change: Sequence[str]) -> None:
    """Refuse to go on without a folder, and to allow changes of a run that begins anew.

    Raises:
        UsageError: The arguments of ``Trainer`` ask for that.
    """
    if resume and out is None:
        raise UsageError("resume=True needs out=...: the folder of the run to go on with.")
    if isinstance(allow_change, str):
        raise UsageError(f"allow_change is {allow_change!r}: give a list of keys or sections.")
    if allow_change and not resume:
        raise UsageError(
            f"allow_change={list(allow_change)} needs resume=True: a run that begins anew has "
            f"nothing that could differ."
        )


def check_start(blueprint: Blueprint, data: PreparedData, folder: RunFolder) -> None:
    """Refuse what cannot be trained on this data, on these devices, or on this disk.

    Raises:
        DataError: There is a training message that is too small to learn from.
        ModelError: Processors learn a convolution wrongly in the memory order that is asked for.
        RunFolderError: There is too little room for checkpoints.
        RecipeError: A loss, method or optimizer of the user's own does not work.
    """
    check_messages(blueprint, data)
    check_layout(blueprint)
    check_disk(blueprint, folder)
    try_loss(blueprint)
    try_method(blueprint, data)
    try_optimizer(blueprint)


def check_compiler(recipe: Recipe) -> None:
    """Refuse to compile what cannot be compiled.

    Raises:
        RecipeError: The method cannot, or there is no compiler.
    """
    if not recipe.train.compile:
        return
    if build_method(recipe).needs_input_gradient:
        raise RecipeError(
            f"train.compile: method {recipe.method.name!r} differentiates a gradient, which "
            f"compiled code cannot: set train.compile = false, or choose another method."
        )
    if (name := missing_compiler()) is not None:
        raise RecipeError(
            f"train.compile needs a C++ compiler, but {name!r} is not there: install it, name "
            f"another in the environment variable CXX, or set train.compile = false."
        )


def check_concurrency(recipe: Recipe) -> None:
    """Refuse blocks at the same time that exchange more than features.

    Raises:
        RecipeError: The method's blocks do.
    """
    method = build_method(recipe)
    if recipe.runtime.concurrent_blocks and (method.late_fields or method.slow_from is not None):
        raise RecipeError(
            f"runtime.concurrent_blocks: blocks of method {recipe.method.name!r} exchange more "
            f"than features, so they cannot overlap: set runtime.concurrent_blocks = false, or "
            f"choose another method."
        )


def check_sharding(recipe: Recipe) -> None:
    """Refuse methods that ask for more of a layer than its forward and one gradient.

    Raises:
        RecipeError: The method reads a later block's parameters, or differentiates a gradient.
    """
    method = build_method(recipe)
    if recipe.runtime.sharding != "none" and (method.slow_from or method.needs_input_gradient):
        what = (
            "reads a later block's parameters" if method.slow_from else "differentiates a gradient"
        )
        raise RecipeError(
            f"runtime.sharding: method {recipe.method.name!r} {what}, which shares do not allow: "
            f'set runtime.sharding = "none", or choose another method.'
        )


def check_names(recipe: Recipe, *, own_model: bool) -> None:
    """Refuse names and options that no shelf has.

    Raises:
        RecipeError: A method, loss, network or data set is unknown, or has no such option, or files
            are named that it does not read.
    """
    build_method(recipe)
    build_task_loss(recipe, torch.device("cpu"))
    if not own_model:
        refuse_given(recipe)
        _check_model(recipe.model)
    check_dataset_name(recipe.data)


def _check_model(config: ModelConfig) -> None:
    if config.is_own:
        check_own_model(config.name, config.options)
    elif config.is_foreign:
        check_of_library(config.name)
    else:
        _refuse_others(config)
        models.check(config.name, config.options)


def _refuse_others(config: ModelConfig) -> None:
    """Refuse another network's options, which ``--set model.name`` leaves as a recipe has them.

    Raises:
        RecipeError: There are some.
    """
    known = models[config.name].options
    others = {key for entry in models for key in entry.options} - known.keys()
    if left := [f"model.{key}" for key in config.options if key in others]:
        options = ", ".join(f"model.{key}" for key in known)
        raise RecipeError(
            f"{', '.join(left)}: options of another network; those of {config.name!r} are "
            f"{options}. Take them out of the recipe; over one that has them, --set "
            f"'model={{name = \"{config.name}\"}}' leaves nothing of its section model."
        )


def check_messages(blueprint: Blueprint, data: PreparedData) -> None:
    """Refuse training messages that are too small to learn from.

    Raises:
        DataError: There is such a message.
    """
    outlines = (blueprint.outline(index) for index in range(blueprint.num_blocks))
    roots = (root for outline in outlines for _, root in outline.named())
    num_train = len(data.train_samples)
    compares = blueprint.method.compares_samples and blueprint.num_blocks > 1
    recipe = blueprint.recipe
    check_smallest_message(
        recipe, num_train, lambda: who_needs_more(recipe, compares, has_batch_norm(roots))
    )


def check_layout(blueprint: Blueprint) -> None:
    """Refuse convolutions that processors cannot learn with their channels last.

    oneDNN's gradient of a weight of 1x1 that skips pixels writes past its memory where there are
    few input channels: wrong values, a crash or a hang (its issue 6035).

    Raises:
        ModelError: The recipe asks for that order on a processor, and there is one.
    """
    recipe = blueprint.recipe
    ranks = range(mesh_of(recipe.train.replicas, recipe.runtime.stages).size)
    on_processors = any(device_of(recipe.runtime, rank).type == "cpu" for rank in ranks)
    if not (recipe.train.channels_last and on_processors):
        return
    for index in range(blueprint.num_blocks):
        for prefix, root in blueprint.outline(index).named():
            for name, module in root.named_modules():
                if isinstance(module, nn.Conv2d) and _is_too_narrow(module):
                    place = f"{qualified(prefix, name)} in block {index}"
                    raise ModelError(_learned_wrongly(place, module))


def _learned_wrongly(place: str, convolution: nn.Conv2d) -> str:
    return (
        f"train.channels_last: {place} is a convolution of 1x1 with stride {convolution.stride} "
        f"and {_num_read(convolution)} input channels. Processors learn it wrongly below "
        f"{_FEWEST_CHANNELS} with their channels last (oneDNN issue 6035): set "
        f"train.channels_last = false, or give it more channels."
    )


def _is_too_narrow(convolution: nn.Conv2d) -> bool:
    skips = convolution.kernel_size == (1, 1) and convolution.stride != (1, 1)
    return skips and _num_read(convolution) < _FEWEST_CHANNELS


def _num_read(convolution: nn.Conv2d) -> int:
    return convolution.in_channels // convolution.groups


def has_batch_norm(roots: Iterable[nn.Module]) -> bool:
    """Whether any module, or one inside, learns from what samples of a message have in common."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for root in roots for m in root.modules()
    )


def check_disk(blueprint: Blueprint, folder: RunFolder) -> None:
    """Refuse a run whose checkpoints would not fit on the disk.

    Beside step 0 and those that are kept there must be room for the one that is being written.

    Raises:
        RunFolderError: There is too little room.
    """
    there = len(list(folder.checkpoints.glob("step-*")))
    config = blueprint.recipe.checkpoint
    missing = max(1, config.num_newest + int(config.keeps_best) + 2 - there)
    needed = missing * checkpoint_bytes(blueprint)
    existing = next(p for p in (folder.path, *folder.path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise RunFolderError(
            f"the disk of {folder.path} has {_mebibytes(free)} free, but {missing} checkpoint(s) "
            f"need {_mebibytes(needed)}: make room, choose another --out, or lower "
            f"checkpoint.keep."
        )


def checkpoint_bytes(blueprint: Blueprint) -> int:
    """Size of one checkpoint: parameters and buffers, and the optimizer's tensors and averages."""
    states = blueprint.recipe.optimizer.num_states + int(blueprint.recipe.train.ema > 0)
    outlines = [blueprint.outline(index) for index in range(blueprint.num_blocks)]
    weights = sum(t.nbytes for outline in outlines for _, t in outline.named_tensors())
    trained = sum(p.nbytes for o in outlines for _, p in o.named_parameters() if p.requires_grad)
    return weights + states * trained


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"

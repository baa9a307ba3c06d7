"""What must hold before a run begins, so that nothing is found out an hour later."""

from __future__ import annotations

import torch
from torch import nn

from ppll.config import Recipe
from ppll.data import PreparedData, datasets
from ppll.errors import DataError, RecipeError
from ppll.models import models
from ppll.split import Blueprint, build_method

__all__ = ["check_devices", "check_last_batch", "check_names"]


def check_devices(recipe: Recipe) -> None:
    """Refuse devices that this machine does not have.

    Raises:
        RecipeError: A GPU is asked for where there is none.
    """
    devices = recipe.runtime.devices
    for name in (devices,) if isinstance(devices, str) else devices:
        if name not in ("auto", "cpu"):
            found = torch.cuda.device_count()
            state = f"it has {found}, but they cannot be used yet" if found else "it has none"
            raise RecipeError(
                f"runtime.devices asks this machine for {name!r}. Of GPUs {state}: set "
                f'runtime.devices = "cpu".'
            )


def check_names(recipe: Recipe, *, own_model: bool) -> None:
    """Refuse names and options that no shelf has.

    Raises:
        RecipeError: A method, network or data set is unknown, or has no such option.
    """
    build_method(recipe)
    if not own_model:
        models.check(recipe.model.name, recipe.model.options)
    datasets.check(recipe.data.name, recipe.data.options)


def check_last_batch(blueprint: Blueprint, data: PreparedData) -> None:
    """Refuse a last batch of one sample where there is batch norm, which cannot learn from it.

    Raises:
        DataError: There is such a batch.
    """
    num_train, batch_size = len(data.train_samples), data.config.batch_size
    has_short_batch = num_train % batch_size != 0 and not data.config.drop_last
    if (num_train % batch_size if has_short_batch else batch_size) != 1:
        return
    modules = [layer.module for layer in blueprint.network.layers]
    modules += [blueprint.build_auxiliary(i) for i in range(blueprint.num_blocks - 1)]
    if any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for root in modules for m in root.modules()
    ):
        raise DataError(
            f"the last training batch of an epoch has one sample ({num_train} samples in "
            f"batches of {batch_size}), which batch norm cannot learn from: "
            f"set data.drop_last = true, or another data.batch_size."
        )

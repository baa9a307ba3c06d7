"""Shelf of data sets, and the batches that are made of them.

A builder takes its options by keyword and, if it reads files, their folder or none as ``root``.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from ppll.data.cifar10 import cifar10
from ppll.data.dataset import Dataset
from ppll.data.digits import digits
from ppll.data.image_folder import image_folder
from ppll.data.kept import read_kept
from ppll.data.loader import Loader
from ppll.data.own_dataset import build_own_dataset, check_own_dataset, check_same_contents
from ppll.data.preparation import PreparedData, prepare
from ppll.data.split import Split
from ppll.data.stdlib_text import stdlib_text
from ppll.data.stl10 import stl10
from ppll.data.svhn import svhn
from ppll.data.synthetic import synthetic
from ppll.data_facts import DataFacts
from ppll.errors import DataError, RecipeError
from ppll.registry import Registry
from ppll.sections import DataConfig

__all__ = [
    "OWN_DATA",
    "Dataset",
    "Loader",
    "PreparedData",
    "Split",
    "check_dataset_name",
    "datasets",
    "load_batches",
    "load_dataset",
    "prepare",
]

datasets: Registry[Dataset] = Registry("data set", "data")

OWN_DATA: Final = "(given from Python)"
"""What ``data.name`` says of data that no recipe can name."""

datasets.register("digits", "1,797 grey images of digits, 8 x 8, from scikit-learn")(digits)
datasets.register("cifar10", "60,000 colour images, 32 x 32, in ten classes")(cifar10)
datasets.register("svhn", "99,289 colour images of digits of house numbers, 32 x 32")(svhn)
datasets.register("stl10", "13,000 colour images, 96 x 96, in ten classes")(stl10)
datasets.register("image-folder", "images of your own, a folder a class")(image_folder)
datasets.register("stdlib-text", "source of Python's standard library, by the byte")(stdlib_text)
datasets.register("synthetic", "made-up samples of any shape and number")(synthetic)


def load_dataset(config: DataConfig) -> Dataset:
    """The data set that a recipe names.

    Raises:
        RecipeError: The name or an option is unknown.
        DataError: Data is missing or damaged, or was given from Python.
    """
    if config.name == OWN_DATA:
        raise DataError(
            "the data was given from Python, and this recipe does not hold it: give "
            "ppll.Trainer(..., data=...), name a set that is read from files as data.name, or go "
            "on with the run itself by resume, whose folder holds its data."
        )
    if config.is_own:
        return build_own_dataset(config, _names())
    files = [config.root] if _reads_files(config.name) else []
    return datasets.build(config.name, config.options, *files)


def check_dataset_name(config: DataConfig) -> None:
    """Refuse a name or options that no data set has, before anything is read.

    Raises:
        RecipeError: One is unknown, or files are named that it does not read.
    """
    if config.name == OWN_DATA:
        return
    if config.is_own:
        check_own_dataset(config, _names())
        return
    datasets.check(config.name, config.options)
    if config.root is not None and not _reads_files(config.name):
        raise RecipeError(
            f"data.root = {config.root}: data set {config.name!r} reads no files: leave it out, or "
            f"name a set that does as data.name."
        )


def _reads_files(name: str) -> bool:
    """Whether a data set of the shelf is read from files, which ``data.root`` may name."""
    return "root" in inspect.signature(datasets[name].build).parameters


def _names() -> list[str]:
    return [entry.name for entry in datasets]


def load_batches(
    config: DataConfig,
    *,
    seed: int,
    eval_batch_size: int | None = None,
    user_data: Path | None = None,
    facts: DataFacts | None = None,
    fields: Collection[str] = (),
    replica: int = 0,
    num_replicas: int = 1,
) -> Loader:
    """The batches of a run.

    Args:
        config: What the recipe says about its data.
        seed: The run's seed.
        eval_batch_size: Samples of an evaluation batch; as ``config`` says without.
        user_data: A file of ``Dataset.save`` that takes the place of the set that is named.
        facts: By what images are normalised, by the data set's own means without; and what is in
            ``user_data``, or in a data set of the user's own.
        fields: Fields of a message that the method needs; of these, ``image`` is made here.
        replica: Who asks; see ``Loader``.
        num_replicas: Of how many.

    Raises:
        RecipeError: The name or an option is unknown.
        DataError: Data is missing or damaged, or does not fit the recipe.
    """
    dataset = load_dataset(config) if user_data is None else read_kept(user_data, facts)
    prepared = prepare(dataset, config)
    if config.is_own and facts is not None:
        check_same_contents(config.name, prepared.dataset, facts)
    if facts is not None:
        normalised = replace(prepared.dataset, mean=facts.mean, std=facts.std)
        prepared = replace(prepared, dataset=normalised)
    return Loader(
        prepared,
        seed=seed,
        eval_batch_size=eval_batch_size,
        fields=fields,
        replica=replica,
        num_replicas=num_replicas,
    )

"""Measure what the layers and auxiliary networks of a recipe take on this machine.

Layers run in the order and with the sizes of training, one after the other, so that caches are as
they are there. Every repeat runs the network twice: once with the gradients of all inputs, once
with those of the parameters alone, as in the first layer of a block. Messages of a quarter of the
samples are run in turn with whole ones: a line through both tells what does not shrink with them.
Where training records CUDA graphs, what is measured are replays: what a GPU takes when no host is
in its way.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ppll.blocks.blueprint import build_method
from ppll.blocks.streams import make_streams
from ppll.checks import has_batch_norm
from ppll.config import Recipe
from ppll.data import Loader, load_dataset, prepare
from ppll.data.home import home_of
from ppll.data.preparation import facts_of
from ppll.devices import check_devices, describe_device, device_of
from ppll.environment import describe_processor
from ppll.errors import RecipeError
from ppll.job import draw_blueprint
from ppll.loss_trial import try_loss
from ppll.message import FEATURES, TARGETS
from ppll.numerics import set_numerics, torch_as_new
from ppll.planning.costs import Costs, ExitCosts, LayerCosts, counted_for, measured_for
from ppll.planning.layer_bench import WARM_UP, LayerBench
from ppll.planning.pieces import (
    Piece,
    clock,
)
from ppll.planning.traffic import Traffic
from ppll.sections import SplitConfig

__all__ = ["measure"]

_QUARTERED: Final = 8
"""Samples of the smallest message of which a quarter is measured, too."""
_Pieces: TypeAlias = tuple[Piece, Piece]
"""The same piece with whole messages and with smaller ones."""


def measure(recipe: Recipe, *, repeats: int = 7) -> Costs:
    """Measure every layer, and the auxiliary network at every possible cut.

    Args:
        recipe: Its data is loaded; network, method, batch size, precision and optimizer count.
        repeats: How often everything is measured, besides a warm-up.

    Raises:
        UsageError: The recipe's network or data cannot be had.
    """
    if build_method(recipe).end_to_end:
        raise RecipeError(
            f"method.name = {recipe.method.name!r} trains the network as one block, so there is "
            f"nothing to plan: choose another method. Plans show end-to-end rivals beside it."
        )
    if recipe.train.compile:
        raise RecipeError(
            "train.compile: layers are measured one by one, but compiled code spans the layers of "
            "a block: set it to false."
        )
    if recipe.train.activation_checkpointing:
        raise RecipeError(
            "train.activation_checkpointing: layers are measured with all activations kept, so a "
            "plan would miss a forward pass and count memory that is not there: set it to false."
        )
    # Wherever the recipe cuts, every cut is measured; the largest messages are.
    split = SplitConfig(blocks=1, features_dtype=recipe.split.features_dtype)
    train = recipe.train.model_copy(update={"replicas": min(recipe.block_replicas)})
    recipe = recipe.model_copy(update={"split": split, "train": train})
    check_devices(recipe)
    with torch_as_new():
        device = device_of(recipe.runtime, 0)
        set_numerics(recipe.train, device)
        return _measure(recipe, device, repeats)


def _measure(recipe: Recipe, device: torch.device, repeats: int) -> Costs:
    data = prepare(load_dataset(recipe.data), recipe.data)
    blueprint = draw_blueprint(recipe, facts_of(data), None)
    try_loss(blueprint)
    loader = Loader(data, seed=recipe.train.seed, fields=blueprint.method.fields)
    loader.move_to(home_of(data, recipe.runtime.data, device))
    message, load_s = _message(recipe, loader)
    streams = make_streams(recipe, device, 1)
    size = len(message[TARGETS])
    small = size // 4 if size >= _QUARTERED else size
    bench, smaller = benches = [
        LayerBench(
            blueprint,
            {name: tensor[:num].to(device) for name, tensor in message.items()},
            device,
            streams.recorder(0),
        )
        for num in (size, small)
    ]
    with streams.home():
        _run(benches, repeats)
        step_s, block_s = bench.overheads(repeats)
    network, layers = blueprint.network, zip(bench.layers, smaller.layers, strict=True)
    exits = zip(bench.exits, smaller.exits, strict=True)
    traffic = Traffic.of_message(message, blueprint.method, recipe.split.features_dtype)
    return Costs(
        recipe=measured_for(recipe),
        device=describe_device(device, describe_processor()),
        message_size=size,
        layers=tuple(
            _layer_costs(layer.name, pieces, step_s, small / size, traffic.behind(pieces[0], site))
            for layer, pieces, site in zip(network.layers, layers, bench.sites(), strict=True)
        ),
        exits=tuple(_exit_costs(pieces, step_s, small / size) for pieces in exits),
        block_s=block_s,
        load_s=load_s,
        num_stem=network.num_stem,
        num_head=network.num_head,
        num_train=len(data.train_samples),
        counted_for=counted_for(recipe),
        has_batch_norm=has_batch_norm(piece.module for piece in [*bench.layers, *bench.exits]),
        compares_samples=blueprint.method.compares_samples,
        carried_bytes=traffic.carried_bytes,
    )


def _run(benches: Sequence[LayerBench], repeats: int) -> None:
    """Everything of every bench in turn, a warm-up first."""
    for repeat in range(WARM_UP + repeats):
        for bench in benches:
            if repeat == WARM_UP:
                bench.begin()
            bench.run_layers()
            bench.run_exits()


def _fixed(pieces: _Pieces, share: float) -> dict[str, float]:
    """The seconds of a piece that stay when messages shrink."""
    whole, small = (piece.times for piece in pieces)
    return {
        "forward_fixed_s": _at_none(whole.forward, small.forward, share),
        "backward_fixed_s": _at_none(whole.backward, small.backward, share),
    }


def _at_none(whole: Sequence[float], small: Sequence[float], share: float) -> float:
    """Where a line through both medians is at no samples; neither negative nor above them.

    Args:
        whole: Seconds with whole messages.
        small: With smaller ones.
        share: Smaller to whole; 1 where messages are too small to tell.
    """
    if share == 1:
        return 0.0
    whole_s, small_s = statistics.median(whole), statistics.median(small)
    return max(0.0, min(whole_s, small_s, (small_s - share * whole_s) / (1 - share)))


def _message(recipe: Recipe, loader: Loader) -> tuple[dict[str, Tensor], float]:
    """The fields of a training message, and the seconds that it takes to make them."""
    first = loader.train_batch(0, 0)  # It fills caches.
    device = first[FEATURES].device
    start = clock(device)
    batch = loader.train_batch(0, 0)
    size = recipe.message_size
    seconds = (clock(device) - start) * size / len(batch[TARGETS])
    return {name: tensor[:size].clone() for name, tensor in batch.items()}, seconds


def _layer_costs(
    name: str, pieces: _Pieces, step_s: float, share: float, traffic: dict[str, int]
) -> LayerCosts:
    piece, times = pieces[0], pieces[0].times
    both = [f + b for f, b in zip(times.forward, times.backward, strict=True)]
    return LayerCosts(
        name=name,
        forward_s=statistics.median(times.forward),
        backward_s=statistics.median(times.backward),
        backward_first_s=min(
            statistics.median(times.backward_first), statistics.median(times.backward)
        ),
        update_s=_above(times.update, step_s),
        features_bytes=piece.features_bytes + piece.beside_bytes,
        activation_bytes=piece.activation_bytes,
        parameter_bytes=piece.parameter_bytes,
        spread=_spread(both),
        sent_bytes=traffic["sent_bytes"],
        carried_bytes=traffic["carried_bytes"],
        **_fixed(pieces, share),
    )


def _exit_costs(pieces: _Pieces, step_s: float, share: float) -> ExitCosts:
    piece = pieces[0]
    return ExitCosts(
        forward_s=statistics.median(piece.times.forward),
        backward_s=statistics.median(piece.times.backward),
        update_s=_above(piece.times.update, step_s),
        activation_bytes=piece.activation_bytes,
        parameter_bytes=piece.parameter_bytes,
        **_fixed(pieces, share),
    )


def _above(update: Sequence[float], step_s: float) -> float:
    """The part of an optimizer step that grows with what is updated."""
    return max(0.0, statistics.median(update) - step_s) if update else 0.0


def _spread(values: Sequence[float]) -> float:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [0.0, 1.0, 0.0]
    median = statistics.median(values)
    return (quarters[2] - quarters[0]) / median if median else 0.0

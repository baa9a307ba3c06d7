"""Where a network is cut: evenly, as a paper has it, or where the recipe says (no torch).

The cuts of the literature are for residual networks of three equal stages. A paper names the layer
that a block ends with, as (stage, index in the stage).

Sources: Wang et al., "Revisiting Locally Supervised Learning" (InfoPro, ICLR 2021) and its authors'
configuration, by depth and by memory; ContSup (2023), the memory-balanced cuts that it adds for
ResNet-32.
"""

from __future__ import annotations

from typing import Final

from ppll.errors import ModelError, up_to
from ppll.placement import place
from ppll.sections import SplitConfig

__all__ = ["NAMED_CUTS", "cut_starts"]

_Ends = tuple[tuple[int, int], ...]

_INFOPRO: Final[dict[tuple[int, int], _Ends]] = {
    (5, 2): ((2, 1),),
    (5, 3): ((1, 4), (2, 4)),
    (5, 4): ((1, 2), (2, 1), (3, 0)),
    (5, 8): ((1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)),
    (18, 2): ((2, 8),),
    (18, 3): ((1, 17), (2, 17)),
    (18, 4): ((1, 11), (2, 7), (3, 3)),
    (18, 8): ((1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)),
    (18, 16): (
        *((1, i) for i in (1, 4, 7, 10, 13, 16)),
        *((2, i) for i in (1, 4, 7, 11, 15)),
        *((3, i) for i in (1, 5, 9, 13)),
    ),
}
_INFOPRO_MEMORY: Final[dict[tuple[int, int], _Ends]] = {
    (18, 2): ((1, 14),),
    (18, 3): ((1, 9), (2, 2)),
    (18, 4): ((1, 6), (1, 14), (2, 8)),
}
_CONTSUP: Final[dict[tuple[int, int], _Ends]] = {
    (5, 2): ((1, 3),),
    (5, 4): ((1, 2), (1, 4), (2, 2)),
    (5, 8): ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2)),
}
NAMED_CUTS: Final = {
    "infopro": _INFOPRO,
    "infopro-memory": _INFOPRO_MEMORY,
    "contsup": _CONTSUP,
}
"""By name, then by residual layers of a stage and number of blocks: each block's last layer."""


def cut_starts(
    split: SplitConfig, num_layers: int, num_stem: int, num_head: int
) -> tuple[int, ...]:
    """The first layer of every block but the first.

    Args:
        split: What the recipe says.
        num_layers: Layers of the network.
        num_stem: Leading layers that go with the first block.
        num_head: Trailing layers that go with the last.

    Raises:
        ModelError: There are more blocks than layers to deal, a cut lies outside the network, a
            paper has no such cuts, or balanced cuts have not been written out.
    """
    body = num_layers - num_stem - num_head
    match split.cuts:
        case "even":
            return _even(split.blocks, body, num_stem, num_head)
        case "balanced":
            raise ModelError(
                'split.cuts = "balanced" depends on the machine, but two runs of one recipe are '
                "one algorithm: write the cuts out with ppll plan RECIPE --write NEW.toml, and "
                "train that. A network that is given from Python, plans know by a name only "
                '(model.name = "module:function"): name it, or give split.cuts as a list.'
            )
        case str(name):
            return _named(name, body, num_stem, split.blocks)
    if split.cuts and split.cuts[-1] >= num_layers:
        raise ModelError(
            f"split.cuts names layer {split.cuts[-1]}, but the network has {num_layers} layers: "
            f"a cut is the index of a block's first layer, 1 to {num_layers - 1}."
        )
    return split.cuts


def _even(num_blocks: int, body: int, num_stem: int, num_head: int) -> tuple[int, ...]:
    if num_blocks > body:
        ends = num_stem + num_head
        raise ModelError(
            f"cannot make {num_blocks} blocks of {body} layers"
            f"{f' ({ends} more, stem and head, are not counted)' if ends else ''}: ask for "
            f"{up_to(body, 'block')} (split.blocks), or take a deeper network."
        )
    return tuple(num_stem + run.start for run in place(body, num_blocks))[1:]


def _named(name: str, num_body_layers: int, num_stem: int, num_blocks: int) -> tuple[int, ...]:
    per_stage, rest = divmod(num_body_layers, 3)
    ends = NAMED_CUTS[name].get((per_stage, num_blocks))
    if ends is None or rest:
        known = ", ".join(f"{6 * n + 2} in {k}" for n, k in NAMED_CUTS[name])
        raise ModelError(
            f"split.cuts = {name!r} says nothing of a network with {num_body_layers} layers "
            f"between stem and head in {num_blocks} blocks; it has cuts for ResNets of depth "
            f'{known}: take one of these, "even", or cuts of your own.'
        )
    return tuple(num_stem + (stage - 1) * per_stage + index + 1 for stage, index in ends)

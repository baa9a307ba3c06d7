"""What the pieces of a network take on a device: measured once, planned with anywhere (no torch).

Times are seconds for one training message, medians of several repeats; ``ppll.planning.measuring``
makes them. A block's time is the sum of its layers', its auxiliary network's at the cut, and what a
block takes whatever is in it.

Messages of another size are on a line: of a forward or backward pass there is a part that stays
(launches, reading the parameters), and the rest grows with the samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

import pydantic

from ppll.checkpoints.resume import training_sections
from ppll.config import Recipe
from ppll.durable import write_asked
from ppll.errors import RecipeError
from ppll.smallest_message import check_smallest_message, who_needs_more

__all__ = ["Costs", "ExitCosts", "LayerCosts", "counted_for", "measured_for"]

Seconds = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, pydantic.Field(ge=0)]

_FREE: Final = (
    *(f"data.{key}" for key in ("root", "validation", "train_limit", "test_limit", "drop_last")),
    *("data.eval_batch_size", "model.weights", "model.fresh"),
)
"""Keys of the sections that matter which change no time."""
_OF_OLDER_FILES: Final = {"train.replicas", "data.eval_batch_size", "model.fresh"}
"""Keys of older files that no longer tell costs apart: evaluations and first values change no time,
and of replicas a plan knows what they change, the samples of a message, which the costs say."""


class _Measured(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class LayerCosts(_Measured):
    """One layer.

    Attributes:
        name: Its name.
        forward_s: Forward pass in training.
        backward_s: Backward pass with the gradient of its input.
        backward_first_s: The same without: a block's first layer hands no gradient on.
        update_s: Its part of an optimizer step.
        features_bytes: Its output, which an end-to-end pipeline sends.
        activation_bytes: What its forward keeps for its backward.
        parameter_bytes: Its parameters.
        spread: Interquartile range of forward and backward together, relative to the median.
        forward_fixed_s: The part of ``forward_s`` that is the same for fewer samples.
        backward_fixed_s: That of both backward passes.
        sent_bytes: What a block sends that ends here: features as ``split.features_dtype`` has
            them, targets and what else the method sends; its output where it is not known.
        carried_bytes: What of its output goes on beyond the next block.
    """

    name: str
    forward_s: Seconds
    backward_s: Seconds
    backward_first_s: Seconds
    update_s: Seconds
    features_bytes: Bytes
    activation_bytes: Bytes
    parameter_bytes: Bytes
    spread: Seconds = 0.0
    forward_fixed_s: Seconds = 0.0
    backward_fixed_s: Seconds = 0.0
    sent_bytes: Bytes | None = None
    carried_bytes: Bytes = 0

    @property
    def leaving_bytes(self) -> int:
        """``sent_bytes``, or what is known of them."""
        return self.features_bytes if self.sent_bytes is None else self.sent_bytes

    def for_share(self, share: float) -> Self:
        """The same for a message of so many times the samples."""
        fixed_s = self.backward_fixed_s
        return self.model_copy(
            update={
                "forward_s": _on_line(self.forward_s, self.forward_fixed_s, share),
                "backward_s": _on_line(self.backward_s, fixed_s, share),
                "backward_first_s": _on_line(self.backward_first_s, fixed_s, share),
                "features_bytes": round(share * self.features_bytes),
                "activation_bytes": round(share * self.activation_bytes),
                "sent_bytes": round(share * self.leaving_bytes),
                "carried_bytes": round(share * self.carried_bytes),
            }
        )


class ExitCosts(_Measured):
    """An auxiliary network and its loss at a cut, or the network's own loss at its end.

    Attributes:
        forward_s: Forward pass and loss.
        backward_s: Backward pass, with the gradient of the features.
        update_s: Its part of an optimizer step.
        activation_bytes: What its forward keeps for its backward.
        parameter_bytes: Its parameters.
        forward_fixed_s: The part of ``forward_s`` that is the same for fewer samples.
        backward_fixed_s: That of ``backward_s``.
    """

    forward_s: Seconds
    backward_s: Seconds
    update_s: Seconds
    activation_bytes: Bytes
    parameter_bytes: Bytes
    forward_fixed_s: Seconds = 0.0
    backward_fixed_s: Seconds = 0.0

    def for_share(self, share: float) -> Self:
        """The same for a message of so many times the samples."""
        return self.model_copy(
            update={
                "forward_s": _on_line(self.forward_s, self.forward_fixed_s, share),
                "backward_s": _on_line(self.backward_s, self.backward_fixed_s, share),
                "activation_bytes": round(share * self.activation_bytes),
            }
        )


def _on_line(seconds: float, fixed_s: float, share: float) -> float:
    fixed_s = min(fixed_s, seconds)
    return fixed_s + share * (seconds - fixed_s)


class Costs(_Measured):
    """A network with auxiliary networks behind every layer, on one device.

    Attributes:
        recipe: What it was measured for: the parts of a recipe that times depend on.
        device: What it was measured on.
        message_size: Samples of a message.
        layers: Every layer, in order.
        exits: The exit behind every layer; the last one is the network's own loss.
        block_s: What a block takes for a message whatever is in it.
        load_s: Making a message's batch, augmentation included.
        num_stem: Leading layers that belong to the first block.
        num_head: Trailing layers that belong to the last.
        num_train: Samples of an epoch; none where it is not known.
        counted_for: The keys of the data that they depend on.
        has_batch_norm: Whether a layer or an auxiliary network has it; none where it is not known.
        compares_samples: Whether the method does; none where it is not known.
        carried_bytes: What of the network's input goes on beyond the first block.
    """

    recipe: dict[str, dict[str, Any]]
    device: str
    message_size: Annotated[int, pydantic.Field(ge=1)]
    layers: tuple[LayerCosts, ...]
    exits: tuple[ExitCosts, ...]
    block_s: Seconds
    load_s: Seconds
    num_stem: Bytes = 0
    num_head: Bytes = 0
    num_train: Annotated[int, pydantic.Field(ge=1)] | None = None
    counted_for: dict[str, Any] = {}
    has_batch_norm: bool | None = None
    compares_samples: bool | None = None
    carried_bytes: Bytes = 0

    @pydantic.model_validator(mode="after")
    def _one_exit_a_layer(self) -> Self:
        if not self.layers or len(self.layers) != len(self.exits):
            raise ValueError(f"{len(self.layers)} layers have {len(self.exits)} exits")
        if not any(layer.forward_s for layer in self.layers):
            raise ValueError("no layer takes any time")
        return self

    @property
    def fixed_share(self) -> float:
        """Share of all forward and backward passes that is the same for fewer samples."""
        pieces: list[LayerCosts | ExitCosts] = [*self.layers, *self.exits]
        seconds = sum(piece.forward_s + piece.backward_s for piece in pieces)
        fixed_s = sum(piece.forward_fixed_s + piece.backward_fixed_s for piece in pieces)
        return fixed_s / seconds if seconds else 0.0

    @property
    def spread(self) -> float:
        """By how much repeats of a layer differ, relative to their median: that of most layers."""
        return statistics.median(layer.spread for layer in self.layers)

    def for_samples(self, num_samples: int) -> Self:
        """The same for messages of so many samples.

        Updates, and what a block takes whatever is in it, stay as they are. Sizes of features and
        activations grow with the samples.
        """
        if num_samples == self.message_size:
            return self
        share = num_samples / self.message_size
        return self.model_copy(
            update={
                "message_size": num_samples,
                "layers": tuple(layer.for_share(share) for layer in self.layers),
                "exits": tuple(behind.for_share(share) for behind in self.exits),
                "load_s": share * self.load_s,
                "carried_bytes": round(share * self.carried_bytes),
            }
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            RecipeError: It cannot be read, or a number is missing or cannot be.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RecipeError(f"cannot read the costs {path}: {error.strerror}.") from None
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise RecipeError(
                f"{path} holds no costs: {place}: {problem['msg']}. Measure them again with "
                f"ppll plan RECIPE --costs NEW.json."
            ) from None

    def write(self, path: Path) -> None:
        """Write everything as JSON.

        Raises:
            UsageError: It cannot be written.
        """
        write_asked(path, self.model_dump_json(indent=1).encode())

    def knows_samples_of(self, recipe: Recipe) -> bool:
        """Whether the samples of a recipe's epoch are known, and not only those of another's."""
        return self.num_train is not None and self.counted_for == counted_for(recipe)

    def check_messages(self, recipe: Recipe) -> None:
        """Refuse what training would refuse, as far as samples and network are known.

        Where the samples are not, all batches are taken to be full.

        Raises:
            DataError: A training message is too small to learn from.
        """
        known = self.num_train if self.knows_samples_of(recipe) else None
        num_train = recipe.data.batch_size if known is None else known
        compares = bool(self.compares_samples) and recipe.split.blocks > 1
        who = who_needs_more(recipe, compares, bool(self.has_batch_norm))
        check_smallest_message(recipe, num_train, lambda: who)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse to plan a recipe with the costs of another; a key that one lacks has its default.

        Raises:
            RecipeError: They were measured for another network, method, batch or precision.
        """
        defaults = dict(_flat(measured_for(Recipe())))
        found = {**defaults, **dict(_flat(self.recipe))}
        wanted = {**defaults, **dict(_flat(measured_for(recipe)))}
        for key in sorted((found.keys() | wanted.keys()) - _OF_OLDER_FILES):
            if found.get(key) != wanted.get(key):
                raise RecipeError(
                    f"the costs were measured for {key} = {found.get(key)!r}, but the recipe has "
                    f"{wanted.get(key)!r}: measure them again for this recipe."
                )


def measured_for(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The parts of a recipe that times depend on."""
    tree = training_sections(recipe)
    keys = (
        "precision",
        "tf32",
        "threads_per_stage",
        "accumulate",
        "channels_last",
        "compile",
        "cuda_graphs",
        "activation_checkpointing",
    )
    train = {key: tree["train"][key] for key in keys}
    data, model = (
        {k: v for k, v in tree[section].items() if f"{section}.{k}" not in _FREE}
        for section in ("data", "model")
    )
    updates = ("name", "momentum", "nesterov", "options", "fused")
    optimizer = {key: tree["optimizer"][key] for key in updates}
    parts = {
        "data": data,
        "model": model,
        "method": tree["method"],
        "loss": tree["loss"],
        "optimizer": optimizer,
        "train": train,
    }
    if (dtype := recipe.split.features_dtype) is not None:
        parts["split"] = {"features_dtype": dtype}
    return parts


def counted_for(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe's data that the number of its samples depends on."""
    data = training_sections(recipe)["data"]
    return {key: data[key] for key in ("root", "train_limit", "validation")}


def _flat(tree: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, Any]]:
    return ((f"{s}.{key}", value) for s, keys in tree.items() for key, value in keys.items())

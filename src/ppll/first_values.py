"""From a network's first values to the checkpoint of step 0, and back into a user's network.

Starting is resuming from step 0: every rank takes its values from that checkpoint, whoever made
the network and wherever the rank runs.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import torch

from ppll.checkpoint import TensorReader, commit, step_folder, write_block
from ppll.errors import ModelError
from ppll.models.network import Layer, Network, initialise
from ppll.split import Blueprint

__all__ = ["put_back", "skeleton_of", "write_first_checkpoint"]


def skeleton_of(network: Network, num_stages: int) -> Network:
    """The network without its values, which travel in the checkpoint of step 0.

    Raises:
        ModelError: It cannot be handed to other processes, and there are some.
    """
    layers = [Layer(x.name, copy.deepcopy(x.module).to("meta")) for x in network.layers]
    skeleton = dataclasses.replace(network, layers=tuple(layers))
    if num_stages > 1:
        try:
            pickle.dumps(skeleton)
        except Exception as error:
            raise ModelError(
                f"the network cannot be handed to other processes ({error}): define its classes "
                f"at the top of a module and use no lambdas, or set runtime.stages = 1."
            ) from None
    return skeleton


def write_first_checkpoint(blueprint: Blueprint, checkpoints: Path, *, own: bool) -> None:
    """Write the checkpoint of step 0, from which every rank starts.

    Args:
        blueprint: The network cut into blocks.
        checkpoints: The run's folder of checkpoints.
        own: Whether the network is a user's and starts from the values that it has.
    """
    target = step_folder(checkpoints, 0)
    seed = blueprint.recipe.train.seed
    own_layers = {layer.name for layer in blueprint.network.layers} if own else set()
    for index in range(blueprint.num_blocks):
        modules = blueprint.build_modules(index, torch.device("cpu"))
        for prefix, module in modules.named():
            if prefix not in own_layers:
                initialise(module, prefix, seed)
        tensors = dict(modules.named_tensors())
        if own:
            values = _named_tensors(blueprint.network)
            tensors.update({name: values[name] for name in tensors if name in values})
        write_block(target, 0, index, tensors, {})
    commit(target, 0, blueprint.num_blocks)


def put_back(checkpoint: Path, network: Network) -> None:
    """Copy a checkpoint's values into a user's own network."""
    saved = TensorReader(checkpoint).all_weights()
    with torch.no_grad():
        for name, tensor in _named_tensors(network).items():
            tensor.copy_(saved[name])


def _named_tensors(network: Network) -> dict[str, torch.Tensor]:
    module = network.as_module()
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}

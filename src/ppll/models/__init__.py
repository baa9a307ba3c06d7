"""Shelf of networks, each an ordered row of layers that can be cut between any two.

A builder takes the shape of one sample and the number of classes, and its options by keyword.
"""

from __future__ import annotations

from ppll.models import gpt, resnet, vit
from ppll.models.initialising import initialise
from ppll.models.names import qualified
from ppll.models.network import Layer, Network
from ppll.models.trial import feature_shapes
from ppll.registry import Registry

__all__ = ["OWN_MODEL", "Layer", "Network", "feature_shapes", "initialise", "models", "qualified"]

OWN_MODEL = "(given from Python)"
"""What ``model.name`` says of a network that no shelf has."""

models: Registry[Network] = Registry("model", "model")

_add = models.register
_add("resnet", "ResNet for small images, of any depth 6n + 2 (He et al. 2016)")(resnet.resnet)
_add("resnet32", "ResNet for small images, 32 layers deep")(resnet.resnet32)
_add("resnet110", "ResNet for small images, 110 layers deep")(resnet.resnet110)
_add("gpt", "causal transformer of any size, for text (Radford et al. 2019)")(gpt.gpt)
_add("vit", "vision transformer of any size (Dosovitskiy et al. 2021)")(vit.vit)
_add("vit-tiny", "vision transformer of width 192, 12 layers, 3 heads")(vit.vit_tiny)
_add("vit-small", "vision transformer of width 384, 12 layers, 6 heads")(vit.vit_small)

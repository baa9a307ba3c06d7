"""Residual networks for small images (He et al., "Deep residual learning", CVPR 2016, sec. 4.2).

A 3x3 stem, three stages of ``n`` residual layers of width 16, 32 and 64, global average pooling
and a linear layer: ``6n + 2`` layers with weights. Where the shape changes, the shortcut is a
strided 1x1 convolution with batch norm (the paper's option B). The paper's own CIFAR figures have
option A (zero padding, no parameters); the published figures of local learning that we compare
with come from InfoPro's networks, which have option B.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from ppll.errors import RecipeError
from ppll.models.network import Layer, Network
from ppll.models.options import check_counts, image_shape

__all__ = ["resnet", "resnet32", "resnet110"]


class Convolution(nn.Conv2d):
    """A convolution without bias that keeps the size (but for the stride), He-initialised."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )

    def reset_parameters(self) -> None:
        """Normal values that keep the variance of the gradient through a ReLU."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Stem(nn.Module):
    """Images (N, C, H, W) to maps (N, width, H, W)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, width, 3)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Maps of ``width`` channels, of the images' size."""
        return F.relu(self.norm(self.conv(images)))


class ResidualLayer(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C, H, W) to (N, channels, H/stride, W/stride).

    No ReLU works in place: a layer's input and output are another layer's too.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = Convolution(channels, channels, 3)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        """The features with what the two convolutions add to them."""
        residual = F.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(features))


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(
        Convolution(in_channels, channels, 1, stride),
        nn.BatchNorm2d(channels),
    )


class Head(nn.Module):
    """Maps (N, C, H, W) to logits (N, classes): the mean of every channel, then a linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def resnet(
    input_shape: tuple[int, ...], num_classes: int, *, depth: int = 20, width: int = 16
) -> Network:
    """A ResNet of any depth ``6n + 2``.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: Length of the logits.
        depth: Layers with weights on the longest way: 8, 14, 20, ...
        width: Channels of the first stage; the second has twice, the third four times as many.

    Returns:
        The layers ``stem``, ``stage1_0`` to ``stage3_{n-1}``, ``head``.

    Raises:
        RecipeError: The depth is not ``6n + 2``, the width is below 1, or samples are no images.
    """
    channels, _, _ = image_shape("resnet", input_shape)
    num_per_stage = _layers_per_stage(depth)
    check_counts(width=width, depth=depth)
    layers = (
        Layer("stem", Stem(channels, width)),
        *_residual_layers(num_per_stage, width),
        Layer("head", Head(4 * width, num_classes)),
    )
    return Network(layers, num_stem=1, num_head=1)


def _layers_per_stage(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        below = max(8, depth - (depth - 2) % 6)
        near = f"{below} or {below + 6}" if depth > 8 else "8"
        raise RecipeError(
            f"model.depth must be 6n + 2 (8, 14, 20, ...), found {depth}: take {near}."
        )
    return (depth - 2) // 6


def _residual_layers(num_per_stage: int, width: int) -> Iterator[Layer]:
    in_channels = width
    for stage in range(3):
        channels = width * 2**stage
        for index in range(num_per_stage):
            stride = 2 if stage > 0 and index == 0 else 1
            module = ResidualLayer(in_channels, channels, stride)
            yield Layer(f"stage{stage + 1}_{index}", module)
            in_channels = channels


def resnet32(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16) -> Network:
    """ResNet-32: five residual layers a stage; see ``resnet``."""
    return resnet(input_shape, num_classes, depth=32, width=width)


def resnet110(input_shape: tuple[int, ...], num_classes: int, *, width: int = 16) -> Network:
    """ResNet-110: eighteen residual layers a stage; see ``resnet``."""
    return resnet(input_shape, num_classes, depth=110, width=width)

"""Where the pixels of an image come from: crops, flips, affine moves, squares cut out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["box_mask", "crop_at", "cut_out", "flipped", "moved"]


def crop_at(images: Tensor, top: Tensor, left: Tensor, *, padding: int) -> Tensor:
    """Pad with zeros and cut the images' own size out again.

    Args:
        images: (N, C, H, W).
        top: First row of what is cut out, in the padded image: (N).
        left: Its first column: (N).
        padding: Pixels added on every side.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (padding,) * 4)
    # Every place to cut at is a view: (N, C, 2 padding + 1, 2 padding + 1, H, W).
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def flipped(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror the images (N, C, H, W) for which ``is_flipped`` (N) is 1 and not 0, left and right.

    All are mirrored, since which are to be is known on the device only; ``torch.where`` takes five
    times as long on processors.
    """
    places = torch.arange(len(images), device=images.device)
    chosen = places.add(is_flipped, alpha=len(images))
    return torch.cat([images, images.flip(3)]).index_select(0, chosen)


def cut_out(
    images: Tensor, row: Tensor, column: Tensor, *, side: int, fill: Tensor | None = None
) -> Tensor:
    """Paint a square over (DeVries and Taylor, arXiv 1708.04552).

    What lies outside the image is cut off, so a square can be smaller at the border.

    Args:
        images: (N, C, H, W).
        row: The middle of the square: (N).
        column: The same: (N).
        side: In pixels.
        fill: Of every channel (C), like ``images``; 0 without.
    """
    height, width = images.shape[-2:]
    top, left = row - side // 2, column - side // 2
    mask = box_mask(top, top + side, left, left + side, height=height, width=width)
    return torch.where(mask.unsqueeze(1), _paint(images, fill), images)


def moved(images: Tensor, matrices: Tensor, fill: Tensor | None = None) -> Tensor:
    """Every pixel from the nearest one to where its matrix points.

    Args:
        images: (N, C, H, W).
        matrices: From column, row and one of a pixel, counted from the middle of the image, to the
            column and row that its value comes from: (N, 2, 3) float64.
        fill: Of every channel (C), like ``images``, for what comes from outside; 0 without.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).double().sub_((height - 1) / 2)[:, None]
    columns = torch.arange(width, device=images.device).double().sub_((width - 1) / 2)
    (a, b, c), (d, e, f) = (row.unbind(1) for row in matrices[..., None, None].unbind(1))
    x = (a * columns + b * rows + c + width / 2).floor().long()
    y = (d * columns + e * rows + f + height / 2).floor().long()
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # (N, H, W)
    places = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1).unsqueeze(1)
    found = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1))
    return torch.where(is_inside.unsqueeze(1), found.view(images.shape), _paint(images, fill))


def _paint(images: Tensor, fill: Tensor | None) -> Tensor:
    return images.new_zeros(1) if fill is None else fill.view(1, -1, 1, 1)


def box_mask(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, *, height: int, width: int
) -> Tensor:
    """Which pixels lie in a box: (N, H, W), of rows ``top`` to below ``bottom`` (N) and so on."""
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]

"""Feature maps (B, H, W, C) whose samples may be padded: masking, mean, and resampling that never see the padding.

An ``extent`` is an int tensor (B, 2), each sample's valid (height, width); None means that every pixel is valid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def valid(extent: Tensor, height: int, width: int) -> Tensor:
    """Where a grid holds pixels of the sample: bool (B, H, W).

    Example:
        >>> valid(torch.tensor([[1, 2]]), 2, 3)
        tensor([[[ True,  True, False],
                 [False, False, False]]])
    """
    rows = torch.arange(height, device=extent.device) < extent[:, :1]
    columns = torch.arange(width, device=extent.device) < extent[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def zero_padding(grid: Tensor, extent: Tensor | None) -> Tensor:
    """``grid`` (B, H, W, C) with zeros in the padding, whatever stands there; no gradient flows into it."""
    return grid if extent is None else grid.masked_fill(~valid(extent, *grid.shape[1:3])[..., None], 0)


def mean(grid: Tensor, extent: Tensor | None = None) -> Tensor:
    """Mean over each sample's valid pixels: (B, H, W, C) -> (B, C).

    Example:
        >>> mean(torch.tensor([[[[1.0], [3.0], [8.0]]]]), torch.tensor([[1, 2]]))
        tensor([[2.]])
    """
    if extent is None:
        return grid.mean((1, 2))
    return zero_padding(grid, extent).sum((1, 2)) / extent.prod(1, keepdim=True).to(grid.dtype)


def resample(
    grid: Tensor, size: tuple[int, int], extent: Tensor | None = None, new_extent: Tensor | None = None
) -> Tensor:
    """Bring maps to another grid with a triangle filter: bilinear when enlarging, a weighted mean when shrinking.

    Pixel centres are matched by the half-pixel convention of :func:`hamlet.ops.cross_scale_attention`, each sample's
    valid pixels onto its new ones, so a padded sample gets what it would get alone. It is two matrix products, which
    unlike ``F.interpolate`` give the same bits from run to run in the backward on a GPU too.

    Args:
        grid: (B, H, W, C).
        size: height and width of the result.
        extent: int (B, 2) on ``grid``, or None.
        new_extent: int (B, 2) on the result, or None; the result is 0 outside.

    Returns:
        (B, *size, C).

    Example:
        >>> resample(torch.tensor([[[[0.0], [1.0]]]]), (1, 4)).flatten()
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    height, width = size
    grid = zero_padding(grid, extent)
    old_height, old_width, channels = grid.shape[1:]
    from_rows, from_columns = (None, None) if extent is None else extent.unbind(1)
    to_rows, to_columns = (None, None) if new_extent is None else new_extent.unbind(1)
    rows = _triangle(old_height, height, from_rows, to_rows, grid)
    columns = _triangle(old_width, width, from_columns, to_columns, grid)
    grid = (rows @ grid.flatten(2)).unflatten(2, (old_width, channels))
    return columns[:, None] @ grid


def _triangle(old: int, new: int, old_valid: Tensor | None, new_valid: Tensor | None, like: Tensor) -> Tensor:
    """The filter along one axis as a matrix (B or 1, new, old) whose rows sum to 1, or to 0 in the padding."""
    source = torch.arange(old, device=like.device)
    target = torch.arange(new, device=like.device)[:, None]
    old_sizes, new_sizes = (
        torch.full((1, 1, 1), size, device=like.device) if sizes is None else sizes[:, None, None]
        for size, sizes in ((old, old_valid), (new, new_valid))
    )
    ratio = old_sizes / new_sizes
    centre = (target + 0.5) * ratio - 0.5
    weight = (1 - (source - centre).abs() / ratio.clamp(min=1)).clamp(min=0)
    weight = weight.masked_fill((source >= old_sizes) | (target >= new_sizes), 0)
    return (weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)).to(like.dtype)

"""HFFN, the hierarchical feature fusion network (HAMLET architecture, §3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.nn import grid
from hamlet.nn.branch import branch_end

BEGINNING = 0.05
"""Of the residual branches: what fresh layers say of a pixel would hide what the levels hold."""


class HFFN(nn.Module):
    """Levels of a pyramid into one map: Z = sum_i w_i T_i(Z_i), with weights that the content chooses at each pixel.

    Each level has its transform T_i, a residual two-layer perceptron, and is then brought to the grid of the middle
    level. There every pixel's levels attend to one another (cross-attention over the levels at one place), and a
    softmax over the levels of what that gave weighs them.

    Args:
        width: channels C of every level, and of the result.
        levels: how many.
        heads: of the cross-attention; divides ``width``.
        adaptive: attend, and choose the weights by content; otherwise the mean of T_i(Z_i).

    Raises:
        ValueError: heads that do not divide the width.

    Example:
        >>> hffn = HFFN(32, levels=2)
        >>> fused, weights = hffn([torch.randn(1, 8, 6, 32), torch.randn(1, 4, 3, 32)])
        >>> tuple(fused.shape), tuple(weights.shape)
        ((1, 4, 3, 32), (1, 4, 3, 2))
    """

    def __init__(self, width: int, levels: int, *, heads: int = 4, adaptive: bool = True) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: got {heads}, expected a divisor of the width {width}")
        self.middle = levels // 2
        self.transform = nn.ModuleList(_Transform(width) for _ in range(levels))
        self.interact = _Interaction(width, levels, heads) if adaptive and levels > 1 else None

    def forward(self, levels: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Fuse levels.

        Args:
            levels: (B, Hi, Wi, C) each, finite in the padding too.
            extents: int (B, 2) a level, or None.

        Returns:
            The fused map (B, H, W, C) on the grid of level ``self.middle``, and the weights (B, H, W, L).
        """
        size = levels[self.middle].shape[1:3]
        extent: Sequence[Tensor | None] = extents or [None] * len(levels)
        aligned = [
            grid.resample(transform(level), (size[0], size[1]), own, extent[self.middle])
            for transform, level, own in zip(self.transform, levels, extent, strict=True)
        ]
        stacked = torch.stack(aligned, 3)
        if self.interact is None:
            return stacked.mean(3), stacked.new_full((*stacked.shape[:3], len(levels)), 1 / len(levels))
        stacked, weights = self.interact(stacked)
        return (weights[..., None, :].to(stacked.dtype) @ stacked).squeeze(3), weights


class _Transform(nn.Module):
    """T_i, pixel by pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = branch_end(width, width, BEGINNING)
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Interaction(nn.Module):
    """Attention among the levels at each pixel, (..., L, C), and their weights, (..., L)."""

    def __init__(self, width: int, levels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.empty(levels, width))
        nn.init.trunc_normal_(self.place, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = branch_end(width, width, BEGINNING)
        score = nn.Linear(width, 1, bias=False)
        nn.init.trunc_normal_(score.weight, std=0.02)
        self.weigh = nn.Sequential(nn.LayerNorm(width), score)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.project(self.norm(x + self.place)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (side.transpose(-2, -3) for side in projected.unbind(-3))
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(-2, -3).flatten(-2))
        logits = self.weigh(x).squeeze(-1)
        return x, logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))

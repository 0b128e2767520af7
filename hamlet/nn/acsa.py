"""ACSA, adaptive cross-scale attention (HAMLET architecture, §3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hamlet.nn import grid
from hamlet.nn.branch import branch_end
from hamlet.ops import pyramid_attention

BEGINNING = 0.05
"""Of the residual branch: fresh attention is a blur of its window, which would hide what a pixel holds."""

Pairs = list[list[Tensor | None]]
"""Entry [i][j] belongs to queries of level i on keys of level j; None where there is no such pair."""


class Attended(NamedTuple):
    """What ACSA found: the levels, and how it steered."""

    levels: list[Tensor]
    """(B, Hi, Wi, C) each."""
    radius: Pairs
    """(B, Hi, Wi, heads), half-widths of the windows in pixels of level j."""
    gate: Pairs
    """(B, Hi, Wi, heads), in (0, 1)."""
    mean_radius: Tensor
    """0-dim, the mean of (r - 0.5) / (R - 0.5): how much of the largest windows is used, in [0, 1]."""


class ACSA(nn.Module):
    """Every level attends to every level through windows whose sizes it chooses, gated by what it sees.

    A query of level i looks at level j through a window of half-width ``r_ij = 0.5 + (R_j - 0.5) sigmoid(f_ij(x_i))``,
    chosen for each pixel and head, R_j being ``window`` image pixels in pixels of level j. So the windows of one query
    cover the same part of the image at every level. ``gate_ij(x_i)`` says how much of level j to let in::

        x_i + W_o sum_j gate_ij * attention(q_i, k_j, v_j; r_ij)

    Args:
        width: channels C of every level.
        strides: image pixels a pixel of each level.
        heads: divides ``width``.
        window: largest half-width in image pixels; at least one pixel of a level is always allowed.
        adaptive_radius: choose the radius; otherwise every window is the largest.
        gated: choose the gate; otherwise it is 1.
        cross_scale: attend to all levels; otherwise each level to itself alone.

    Raises:
        ValueError: heads that do not divide the width, or a window that is not above 0.

    Example:
        >>> acsa = ACSA(32, strides=(8, 16), heads=4)
        >>> found = acsa([torch.randn(1, 8, 8, 32), torch.randn(1, 4, 4, 32)])
        >>> [tuple(level.shape) for level in found.levels], tuple(found.radius[0][1].shape)
        ([(1, 8, 8, 32), (1, 4, 4, 32)], (1, 8, 8, 4))
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        *,
        heads: int = 4,
        window: float = 48.0,
        adaptive_radius: bool = True,
        gated: bool = True,
        cross_scale: bool = True,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: got {heads}, expected a divisor of the width {width}")
        if not 0 < window < math.inf:
            raise ValueError(f"window: got {window}, expected image pixels > 0")
        count = len(strides)
        pairs = [[cross_scale or i == j for j in range(count)] for i in range(count)]
        self.heads = heads
        self.max_radius = [max(1.0, window / stride) for stride in strides]
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in strides)
        self.project = nn.ModuleList(nn.Linear(width, 3 * width) for _ in strides)
        self.out = nn.ModuleList(branch_end(width, width, BEGINNING) for _ in strides)
        self.share = _Signal(width, heads, pairs) if adaptive_radius else _Open(heads, pairs)
        self.gate = _Signal(width, heads, pairs) if gated else None

    def forward(self, levels: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> Attended:
        """Attend between levels.

        Args:
            levels: (B, Hi, Wi, C) each, finite in the padding too.
            extents: int (B, 2) a level, or None.
        """
        normed = [norm(level) for norm, level in zip(self.norm, levels, strict=True)]
        projected = [
            project(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
            for project, x in zip(self.project, normed, strict=True)
        ]
        queries, keys, values = (list(side) for side in zip(*projected, strict=True))
        share = self.share(normed)
        radius = [
            [None if own is None else 0.5 + (self.max_radius[j] - 0.5) * own for j, own in enumerate(row)]
            for row in share
        ]
        gate: Pairs = self.gate(normed) if self.gate is not None else [[None] * len(levels) for _ in levels]
        bounds = [self.max_radius] * len(levels)
        attended = pyramid_attention(
            queries, keys, values, radius=radius, max_radius=bounds, gate=gate, extents=extents
        )
        results = [level + out(own.flatten(3)) for level, out, own in zip(levels, self.out, attended, strict=True)]
        return Attended(results, radius, gate, _mean(share, extents))


class _Signal(nn.Module):
    """A number in (0, 1) for each pixel, head and level that the pixel attends to, from what the pixel holds."""

    def __init__(self, width: int, heads: int, pairs: list[list[bool]]) -> None:
        super().__init__()
        self.heads, self.pairs = heads, pairs
        self.linear = nn.ModuleList(_steering(width, sum(row) * heads) for row in pairs)

    def forward(self, levels: Sequence[Tensor]) -> Pairs:
        found: Pairs = []
        for linear, x, row in zip(self.linear, levels, self.pairs, strict=True):
            logits = linear(x)
            # A radius in bfloat16 would be off by up to 1/64 pixel at 6 pixels.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            signals = iter(logits.sigmoid().unflatten(-1, (-1, self.heads)).unbind(3))
            found.append([next(signals) if wanted else None for wanted in row])
        return found


def _steering(inputs: int, outputs: int) -> nn.Linear:
    """Half-open gates and middling windows to begin with, nearly whatever the content."""
    linear = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


class _Open(nn.Module):
    """What :class:`_Signal` gives, held at 1."""

    def __init__(self, heads: int, pairs: list[list[bool]]) -> None:
        super().__init__()
        self.heads, self.pairs = heads, pairs

    def forward(self, levels: Sequence[Tensor]) -> Pairs:
        ones = [x.new_ones(()).expand(*x.shape[:3], self.heads) for x in levels]
        return [[one if wanted else None for wanted in row] for one, row in zip(ones, self.pairs, strict=True)]


def _mean(share: Pairs, extents: Sequence[Tensor] | None) -> Tensor:
    """The mean over samples, valid pixels and heads of each pair, then over the pairs: levels count alike."""
    means = [
        grid.mean(own, None if extents is None else extents[level]).mean()
        for level, row in enumerate(share)
        for own in row
        if own is not None
    ]
    return torch.stack(means).mean()

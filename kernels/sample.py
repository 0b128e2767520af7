"""What one sample of a batch brings to a kernel: the dilation of each of its blocks, and how much of it is valid."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dilation_of(dilation, sample, block, blocks, greatest, STEPS: tl.constexpr):
    """The dilation of one block: read from ``dilation`` (B, T) where there is one, else of the tuple ``STEPS``.

    One that takes every tap but the middle out of the grid is as good as any greater, so ``greatest`` bounds both.
    """
    if dilation is None:
        step = STEPS[0]
        for t in tl.static_range(1, len(STEPS)):
            step = tl.where(block == t, STEPS[t], step)
    else:
        step = tl.load(dilation + sample * blocks + block).to(tl.int32)
    return tl.minimum(tl.maximum(step, 1), greatest)


@triton.jit
def valid_size(extent, sample, height, width, FACTOR: tl.constexpr):
    """Valid (height, width) of a sample on a grid of ``height`` x ``width`` that a stride of ``FACTOR`` led to."""
    if extent is not None:
        rows = tl.load(extent + sample * 2).to(tl.int32)
        columns = tl.load(extent + sample * 2 + 1).to(tl.int32)
        height = tl.minimum((rows + FACTOR - 1) // FACTOR, height)
        width = tl.minimum((columns + FACTOR - 1) // FACTOR, width)
    return height, width


@triton.jit
def position(index, limit, SPREAD: tl.constexpr):
    """Where ``index`` of a grid that ``SPREAD`` - 1 zeros widen is stored, and whether it holds a valid pixel."""
    inside = index >= 0
    if SPREAD > 1:
        inside &= index % SPREAD == 0
        index = index // SPREAD
    return index, inside & (index < limit)

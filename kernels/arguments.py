"""How a kernel takes lists of tensors, one a level or a pair of levels: named tuples of numbers, picked at run time.

One launch serves a whole pyramid, so a program learns only when it runs which tensors are its own. Their addresses and
strides travel as the kernel's own parameters: a table in GPU memory would need a copy before every launch, which CUDA
graphs would replay from memory long gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import triton
import triton.language as tl

BIAS = tl.constexpr(2**62 + 1)


def packed(values: Iterable[int]) -> tuple[int, ...]:
    """Numbers as the kernels take them.

    Triton compiles a kernel anew for every pattern of integers that are 1, divisible by 16, or wider than 32 bits. Made
    odd and wide, all are alike; :func:`pick` takes that back.
    """
    return tuple(2 * value + BIAS.value for value in values)


class Maps(NamedTuple):
    """Tensors (B, H, W, N) or (B, H, W, N, channels): where they begin, 0 for one that is not there, and strides."""

    address: Any
    batch: Any
    row: Any
    column: Any
    head: Any


class Grids(NamedTuple):
    """Sizes of the levels."""

    height: Any
    width: Any


class Pairs(NamedTuple):
    """The pairs of every level, ``first`` to before ``last``, and of every pair the level on its ``other`` side."""

    first: Any
    last: Any
    other: Any


@triton.jit
def pick_float(values, which):
    chosen = values[0]
    for i in tl.static_range(1, len(values)):
        chosen = tl.where(which == i, values[i], chosen)
    return chosen


@triton.jit
def pick(values, which):
    """Entry ``which`` of a packed tuple, a 64-bit integer."""
    return (pick_float(values, which) - BIAS) >> 1


@triton.jit
def pairs_of(pairs, level):
    """The first pair of a level, and the one after its last."""
    if len(pairs.other) == 1 and len(pairs.first) == 1:
        # Known when it is compiled, a loop of one turn is none.
        return 0, 1
    else:
        return pick(pairs.first, level), pick(pairs.last, level)


@triton.jit
def extent_of(grids, extents, level, sample):
    """The valid height and width of a sample, clamped into the grid; ``extents``: addresses of int64 (B, 2), or 0."""
    height = pick(grids.height, level).to(tl.int32)
    width = pick(grids.width, level).to(tl.int32)
    address = pick(extents, level)
    extent = address.to(tl.pointer_type(tl.int64)) + 2 * sample
    valid_height = tl.load(extent, mask=address != 0, other=2**31 - 1)
    valid_width = tl.load(extent + 1, mask=address != 0, other=2**31 - 1)
    return (
        tl.minimum(tl.maximum(valid_height, 1), height).to(tl.int32),
        tl.minimum(tl.maximum(valid_width, 1), width).to(tl.int32),
    )


@triton.jit
def locate(grids, batch, heads, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """The level, sample, head and tile of this program.

    Levels come in the order in which they were given, the longest first. Heads change fastest, as they lie side by side
    in memory.
    """
    program = tl.program_id(0)
    level = 0
    begin = 0
    end = 0
    for i in tl.static_range(len(grids.height)):
        end += tiles_of(grids, i, TILE_Y, TILE_X) * batch * heads
        past = program >= end
        level += past.to(tl.int32)
        begin = tl.where(past, end, begin)
    rest = program - begin
    tiles = tiles_of(grids, level, TILE_Y, TILE_X)
    return level, rest // heads // tiles, rest % heads, rest // heads % tiles


@triton.jit
def tiles_of(grids, level, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    height = pick(grids.height, level).to(tl.int32)
    width = pick(grids.width, level).to(tl.int32)
    return tl.cdiv(height, TILE_Y) * tl.cdiv(width, TILE_X)


@triton.jit
def tile_pixels(grids, level, tile, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """The rows and columns of a tile's pixels."""
    across = tl.cdiv(pick(grids.width, level).to(tl.int32), TILE_X)
    index = tl.arange(0, TILE_Y * TILE_X)
    return tile // across * TILE_Y + index // TILE_X, tile % across * TILE_X + index % TILE_X


@triton.jit
def load_map(maps, which, sample, head, y, x, exists, other):
    """What a map without channels, in float32, holds at pixels; ``other`` where they or the map do not exist."""
    address = pick(maps.address, which)
    start = sample * pick(maps.batch, which) + head * pick(maps.head, which)
    pointers = (
        address.to(tl.pointer_type(tl.float32)) + start + y * pick(maps.row, which) + x * pick(maps.column, which)
    )
    return tl.load(pointers, mask=exists & (address != 0), other=other)


@triton.jit
def row_pointers(maps, which, sample, head, y, x, DTYPE: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    start = sample * pick(maps.batch, which) + head * pick(maps.head, which)
    origin = pick(maps.address, which).to(tl.pointer_type(DTYPE)) + start
    offsets = y * pick(maps.row, which) + x * pick(maps.column, which)
    if ALIGNED:
        origin = tl.multiple_of(origin, 16)
        offsets = tl.multiple_of(offsets, 128 // DTYPE.primitive_bitwidth)
    return origin + offsets[:, None] + tl.arange(0, BLOCK)[None, :]


@triton.jit
def row_mask(exists, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    mask = exists[:, None]
    if CHANNELS != BLOCK:
        mask = mask & (tl.arange(0, BLOCK) < CHANNELS)[None, :]
    return mask


@triton.jit
def load_rows(
    maps, which, sample, head, y, x, exists,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The channels of pixels as (pixels, BLOCK); zeros where they do not exist."""
    pointers = row_pointers(maps, which, sample, head, y, x, DTYPE, BLOCK, ALIGNED)
    return tl.load(pointers, mask=row_mask(exists, CHANNELS, BLOCK), other=0.0)


@triton.jit
def store_rows(
    rows, maps, which, sample, head, y, x, exists,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    pointers = row_pointers(maps, which, sample, head, y, x, DTYPE, BLOCK, ALIGNED)
    tl.store(pointers, rows.to(DTYPE), mask=row_mask(exists, CHANNELS, BLOCK))


@triton.jit
def query_pointers(addresses, which, grids, level, sample, head, heads, y, x):
    """Where a contiguous float32 (B, H, W, N) of the queries of a level has these pixels."""
    height = pick(grids.height, level)
    width = pick(grids.width, level)
    offsets = ((sample * height + y) * width + x) * heads + head
    return pick(addresses, which).to(tl.pointer_type(tl.float32)) + offsets

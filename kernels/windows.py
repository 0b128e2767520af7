"""Where windows lie: centres of queries on the key grid, the box of keys that a tile can reach, and the ramp.

Positions are float32: whole numbers below 2**24 are exact in it, and distances need it anyway.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import load_map, pick, pick_float

LOG2_E = tl.constexpr(1.4426950408889634)
LOG_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))
FAR = tl.constexpr(1e30)
"""A position that no window reaches; minus it is a radius that reaches nothing."""
SHORT_OF_THE_END = tl.constexpr(1 - 2**-20)
"""The share of the ramp that boxes cover. At its very end weights round to nothing, and a whole row is spared where the
reach is a whole number; a softness too small for float32 still leaves the radius itself, its weight 1, within."""
TILES = tl.constexpr(32)
"""Tiles of queries that are looked at together."""
SLACK = tl.constexpr(2**-10)
"""Added to bounds that are computed with more roundings than the distances that they must not miss."""


@triton.jit
def centre(index, queries, keys):
    """Where the queries of an axis have their centres on its key grid.

    A quotient, as good as a division's but from a reciprocal that all queries share: exact where float32 has it.
    """
    numerator = (2 * index.to(tl.float32) + 1) * keys.to(tl.float32)
    denominator = 2 * queries.to(tl.float32)
    reciprocal = 1.0 / denominator
    quotient = numerator * reciprocal
    return tl.fma(tl.fma(-quotient, denominator, numerator), reciprocal, quotient) - 0.5


@triton.jit
def load_window(radii, max_radius, gates, pair, sample, head, y, x, exists):
    """The radius, clamped and as given, and the gate of queries. A query that does not exist reaches nothing."""
    bound = pick_float(max_radius, pair)
    given = load_map(radii, pair, sample, head, y, x, exists, bound)
    radius = tl.where(exists, tl.minimum(tl.maximum(given, 0.5), bound), -FAR)
    gate = load_map(gates, pair, sample, head, y, x, exists, 1.0)
    # A radius that is no number has no window; what comes of it must be no number either.
    return radius, given, tl.where(given == given, gate, given)


@triton.jit
def covered(first, last, size):
    """The whole positions from ``first`` to ``last`` on an axis: the first of them and their number, as floats."""
    first = tl.minimum(tl.maximum(tl.ceil(first), 0.0), size.to(tl.float32))
    last = tl.minimum(tl.floor(last), (size - 1).to(tl.float32))
    return first, tl.maximum(last - first + 1, 0.0)


@triton.jit
def key_box(centre_y, centre_x, radius, softness, height, width):
    """The keys that any query of a tile can reach: top, left, columns and number."""
    reach = radius + softness * SHORT_OF_THE_END
    top, rows = covered(tl.min(centre_y - reach, 0), tl.max(centre_y + reach, 0), height)
    left, columns = covered(tl.min(centre_x - reach, 0), tl.max(centre_x + reach, 0), width)
    return top, left, columns, (rows * columns).to(tl.int32)


@triton.jit
def query_box(
    key_y, key_x, exists, largest_radius, pair, query_grids, level, sample, head, heads, height, width, key_height,
    key_width, max_radius, softness, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """The queries that can reach any key of a tile: top, left, columns and number.

    ``max_radius`` bounds it; of the tiles of queries within that bound, only those count whose own largest radius
    reaches.
    """
    key_top, key_bottom = _ends(key_y, exists)
    key_left, key_right = _ends(key_x, exists)
    reach = max_radius + softness
    top, rows = _reaching(key_top, key_bottom, reach, height, key_height)
    left, columns = _reaching(key_left, key_right, reach, width, key_width)
    top_tile, left_tile = (top / TILE_Y).to(tl.int32), (left / TILE_X).to(tl.int32)
    tile_rows = ((top + rows - 1) / TILE_Y).to(tl.int32) - top_tile + 1
    tile_columns = ((left + columns - 1) / TILE_X).to(tl.int32) - left_tile + 1
    tiles_across = tl.cdiv(pick(query_grids.width, level).to(tl.int32), TILE_X)
    tiles_down = tl.cdiv(pick(query_grids.height, level).to(tl.int32), TILE_Y)
    tiles = pick(largest_radius, pair).to(tl.pointer_type(tl.float32)) + head
    tiles += sample.to(tl.int64) * tiles_down * tiles_across * heads
    largest = -FAR
    first_y, last_y, first_x, last_x = FAR, -FAR, FAR, -FAR
    for start in range(0, tl.where(rows * columns > 0, tile_rows * tile_columns, 0), TILES):
        index = start + tl.arange(0, TILES)
        tile_y, tile_x = top_tile + index // tile_columns, left_tile + index % tile_columns
        within = index < tile_rows * tile_columns
        radius = tl.load(tiles + (tile_y.to(tl.int64) * tiles_across + tile_x) * heads, within, -FAR)
        y, x = tile_y * TILE_Y, tile_x * TILE_X
        gap_y = _gap(y, TILE_Y, key_top, key_bottom, height, key_height)
        gap_x = _gap(x, TILE_X, key_left, key_right, width, key_width)
        reaches = within & (tl.maximum(gap_y, gap_x) <= radius + softness + SLACK)
        largest = tl.maximum(largest, tl.max(tl.where(reaches, radius, -FAR), 0))
        first_y = tl.minimum(first_y, tl.min(tl.where(reaches, y.to(tl.float32), FAR), 0))
        first_x = tl.minimum(first_x, tl.min(tl.where(reaches, x.to(tl.float32), FAR), 0))
        last_y = tl.maximum(last_y, tl.max(tl.where(reaches, (y + TILE_Y - 1).to(tl.float32), -FAR), 0))
        last_x = tl.maximum(last_x, tl.max(tl.where(reaches, (x + TILE_X - 1).to(tl.float32), -FAR), 0))
    reach = largest + softness
    top, rows = _reaching(key_top, key_bottom, reach, height, key_height, first_y, last_y)
    left, columns = _reaching(key_left, key_right, reach, width, key_width, first_x, last_x)
    return top, left, columns, (rows * columns).to(tl.int32)


@triton.jit
def _ends(positions, exists):
    positions = positions.to(tl.float32)
    return tl.min(tl.where(exists, positions, FAR), 0), tl.max(tl.where(exists, positions, -FAR), 0)


@triton.jit
def _reaching(first_key, last_key, reach, queries, keys, first=-FAR, last=FAR):
    """Of the queries from ``first`` to ``last``, those whose centre is within ``reach`` of a run of keys."""
    ratio = queries.to(tl.float32) / keys.to(tl.float32)
    lower = (first_key - reach + 0.5) * ratio - 0.5 - SLACK
    upper = (last_key + reach + 0.5) * ratio - 0.5 + SLACK
    return covered(tl.maximum(lower, first), tl.minimum(upper, last), queries)


@triton.jit
def _gap(start, TILE: tl.constexpr, first_key, last_key, queries, keys):
    """How far a run of keys is from the centres of a tile of queries along an axis; negative where they overlap."""
    return tl.maximum(centre(start, queries, keys) - last_key, first_key - centre(start + TILE - 1, queries, keys))


@triton.jit
def box_pixels(start, top, left, columns, count, BLOCK: tl.constexpr):
    """The rows and columns of consecutive pixels of a box, taken row by row, and which of them are within it."""
    index = start + tl.arange(0, BLOCK)
    position = index.to(tl.float32)
    # Half a step off the whole numbers, the quotient's rounding cannot reach the next one.
    row = tl.floor((position + 0.5) * (1.0 / tl.maximum(columns, 1.0)))
    return top + row, left + (position - row * columns), index < count


@triton.jit
def margins(radius, centre_y, centre_x, key_y, key_x):
    """Radius less distance of every pair; the radius comes off last, so that a key at exactly the radius gives 0."""
    return radius - tl.maximum(tl.abs(centre_y - key_y), tl.abs(centre_x - key_x))


@triton.jit
def ramp(margin, softness):
    return tl.minimum(tl.maximum(1 + margin * (1 / softness), 0.0), 1.0)


@triton.jit
def all_finite(x):
    finite = (tl.abs(x) < INFINITY).to(tl.int32)
    return tl.min(tl.min(finite, 1), 0) == 1

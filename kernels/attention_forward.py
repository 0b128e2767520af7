"""Cross-scale windowed attention, forward: a tile of queries against the keys of every level that it can reach."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import (
    extent_of,
    load_rows,
    locate,
    pairs_of,
    pick,
    query_pointers,
    store_rows,
    tile_pixels,
)
from .windows import (
    FAR,
    INFINITY,
    LOG2_E,
    LOG_2,
    all_finite,
    box_pixels,
    centre,
    key_box,
    load_window,
    margins,
    ramp,
)


@triton.jit
def attention_forward(
    query, key, value, out, radius, gate, lse, query_grids, query_extents, key_grids, key_extents, pairs, max_radius,
    softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program, one tile of one head: the sum over its level's pairs, and the log-sum-exp of each.

    A value that is not finite spoils whole tiles, through 0 * NaN. Only then is the tile done again, CAREFUL, which
    keeps such values out of the product and marks the queries that reach them.

    Args:
        query, key, value, out, radius, gate: ``Maps``, one a level or pair; radius and gate are float32.
        lse: addresses of contiguous float32 (B, H, W, N), one a pair.
        pairs: ``Pairs``, the other side being the key's level.
        TILE_Y, TILE_X: shape of the tile of queries.
        KEYS: keys a step.
        ALIGNED: every address and stride of what has channels is a multiple of 16 bytes.
    """
    # The second program number is 0, but the compiler cannot know: with a branch of its own, the first attempt keeps
    # nothing in registers for the second.
    finite = True
    if tl.program_id(1) == 0:
        finite = _attend(
            query, key, value, out, radius, gate, lse, query_grids, query_extents, key_grids, key_extents, pairs,
            max_radius, softness, scale, batch, heads, DTYPE, CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y,
            TILE_X, KEYS, ALIGNED, PRECISION, False,
        )  # fmt: skip
    if not finite:
        _attend(
            query, key, value, out, radius, gate, lse, query_grids, query_extents, key_grids, key_extents, pairs,
            max_radius, softness, scale, batch, heads, DTYPE, CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y,
            TILE_X, KEYS, ALIGNED, PRECISION, True,
        )  # fmt: skip


@triton.jit
def _attend(
    query, key, value, out, radius, gate, lse, query_grids, query_extents, key_grids, key_extents, pairs, max_radius,
    softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Write the results of one tile, and tell whether all are finite."""
    level, sample, head, tile = locate(query_grids, batch, heads, TILE_Y, TILE_X)
    y, x = tile_pixels(query_grids, level, tile, TILE_Y, TILE_X)
    height, width = extent_of(query_grids, query_extents, level, sample)
    in_grid = (y < pick(query_grids.height, level)) & (x < pick(query_grids.width, level))
    exists = (y < height) & (x < width)
    q = load_rows(query, level, sample, head, y, x, exists, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
    result = tl.zeros((q.shape[0], BLOCK_V), tl.float32)
    first, last = pairs_of(pairs, level)
    for pair in range(first, last):
        other = pick(pairs.other, pair)
        key_height, key_width = extent_of(key_grids, key_extents, other, sample)
        centre_y, centre_x = centre(y, height, key_height), centre(x, width, key_width)
        reach, _, share = load_window(radius, max_radius, gate, pair, sample, head, y, x, exists)
        top, left, columns, count = key_box(centre_y, centre_x, reach, softness, key_height, key_width)
        largest = tl.full((q.shape[0],), -INFINITY, tl.float32)
        total = tl.zeros((q.shape[0],), tl.float32)
        spoilt = tl.zeros((q.shape[0],), tl.float32)
        sums = tl.zeros((q.shape[0], BLOCK_V), tl.float32)
        for start in range(0, count, KEYS):
            key_y, key_x, within = box_pixels(start, top, left, columns, count, KEYS)
            rows, cols = key_y.to(tl.int32), key_x.to(tl.int32)
            k = load_rows(key, other, sample, head, rows, cols, within, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
            v = load_rows(value, other, sample, head, rows, cols, within, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
            key_y = tl.where(within, key_y, FAR)
            margin = margins(reach[:, None], centre_y[:, None], centre_x[:, None], key_y[None, :], key_x[None, :])
            weight = ramp(margin, softness)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
            logits = tl.where(weight > 0, logits, -INFINITY)
            larger = tl.maximum(largest, tl.max(logits, 1))
            offset = tl.where(larger == -INFINITY, 0.0, larger)
            share_of_old = tl.exp2(largest - offset)
            weights = weight * tl.exp2(logits - offset[:, None])
            if CAREFUL:
                finite = tl.abs(v.to(tl.float32)) < INFINITY
                bad = tl.max(tl.where(finite, 0.0, 1.0), 1)
                spoilt += tl.sum(tl.where(logits == -INFINITY, 0.0, bad[None, :]), 1)
                v = tl.where(finite, v, 0.0)
            total = total * share_of_old + tl.sum(weights, 1)
            sums = tl.dot(weights.to(DTYPE), v, sums * share_of_old[:, None], input_precision=PRECISION)
            largest = larger
        empty = total == 0
        share = share / tl.where(empty, 1.0, total)
        if CAREFUL:
            share = tl.where(spoilt > 0, float("nan"), share)
        result += sums * share[:, None]
        log_total = tl.where(empty, -INFINITY, largest * LOG_2 + tl.log(tl.where(empty, 1.0, total)))
        tl.store(query_pointers(lse, pair, query_grids, level, sample, head, heads, y, x), log_total, mask=in_grid)
    store_rows(result, out, level, sample, head, y, x, in_grid, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
    return all_finite(result)

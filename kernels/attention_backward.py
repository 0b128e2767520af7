"""Cross-scale windowed attention, backward: one pass by tiles of queries and one by tiles of keys, without atomics.

The first recomputes each query's probabilities twice, since its delta, the sum of P dO.v, must be known before any
gradient, and leaves delta and its tiles' largest radii for the second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import (
    extent_of,
    load_rows,
    locate,
    pairs_of,
    pick,
    pick_float,
    query_pointers,
    store_rows,
    tile_pixels,
    tiles_of,
)
from .windows import (
    FAR,
    INFINITY,
    LOG2_E,
    all_finite,
    box_pixels,
    centre,
    key_box,
    load_window,
    margins,
    query_box,
    ramp,
)


@triton.jit
def attention_backward_queries(
    query, key, value, grad_out, d_query, radius, gate, lse, grad_lse, delta, d_radius, d_gate, largest_radius,
    query_grids, query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program, one tile of queries of one head: its gradient, and those of its radii and gates for every pair.

    Args:
        lse, grad_lse, delta, d_radius, d_gate: addresses of contiguous float32 (B, H, W, N), one a pair; 0 where there
            is none.
        largest_radius: addresses of float32 (B, tiles, N), the largest radius of every tile, one a pair.
        The others are as in the forward.
    """
    # As in the forward: done again, CAREFUL, where something is not finite, in a branch that shares no registers.
    finite = True
    if tl.program_id(1) == 0:
        finite = _differentiate_queries(
            query, key, value, grad_out, d_query, radius, gate, lse, grad_lse, delta, d_radius, d_gate, largest_radius,
            query_grids, query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads, DTYPE,
            CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y, TILE_X, KEYS, ALIGNED, PRECISION, False,
        )  # fmt: skip
    if not finite:
        _differentiate_queries(
            query, key, value, grad_out, d_query, radius, gate, lse, grad_lse, delta, d_radius, d_gate, largest_radius,
            query_grids, query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads, DTYPE,
            CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y, TILE_X, KEYS, ALIGNED, PRECISION, True,
        )  # fmt: skip


@triton.jit
def _differentiate_queries(
    query, key, value, grad_out, d_query, radius, gate, lse, grad_lse, delta, d_radius, d_gate, largest_radius,
    query_grids, query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, KEYS: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    level, sample, head, tile = locate(query_grids, batch, heads, TILE_Y, TILE_X)
    y, x = tile_pixels(query_grids, level, tile, TILE_Y, TILE_X)
    height, width = extent_of(query_grids, query_extents, level, sample)
    in_grid = (y < pick(query_grids.height, level)) & (x < pick(query_grids.width, level))
    exists = (y < height) & (x < width)
    q = load_rows(query, level, sample, head, y, x, exists, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
    d_out = load_rows(grad_out, level, sample, head, y, x, exists, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
    d_q = tl.zeros((q.shape[0], BLOCK_D), tl.float32)
    first, last = pairs_of(pairs, level)
    for pair in range(first, last):
        other = pick(pairs.other, pair)
        key_height, key_width = extent_of(key_grids, key_extents, other, sample)
        centre_y, centre_x = centre(y, height, key_height), centre(x, width, key_width)
        reach, given, share = load_window(radius, max_radius, gate, pair, sample, head, y, x, exists)
        top, left, columns, count = key_box(centre_y, centre_x, reach, softness, key_height, key_width)
        log_total = LOG2_E * tl.load(query_pointers(lse, pair, query_grids, level, sample, head, heads, y, x), in_grid)
        log_total = tl.where(log_total == -INFINITY, 0.0, log_total)
        own_delta = tl.zeros((q.shape[0],), tl.float32)
        for start in range(0, count, KEYS):
            key_y, key_x, within = box_pixels(start, top, left, columns, count, KEYS)
            rows, cols = key_y.to(tl.int32), key_x.to(tl.int32)
            k = load_rows(key, other, sample, head, rows, cols, within, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
            v = load_rows(value, other, sample, head, rows, cols, within, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
            key_y = tl.where(within, key_y, FAR)
            margin = margins(reach[:, None], centre_y[:, None], centre_x[:, None], key_y[None, :], key_x[None, :])
            weight = ramp(margin, softness)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
            d_weights = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
            products = weight * tl.exp2(logits - log_total[:, None]) * d_weights
            own_delta += tl.sum(tl.where(weight > 0, products, 0.0), 1)
        has_gate = pick(d_gate, pair) != 0
        tl.store(
            query_pointers(d_gate, pair, query_grids, level, sample, head, heads, y, x), own_delta, in_grid & has_gate
        )
        has_grad_lse = pick(grad_lse, pair) != 0
        from_lse = query_pointers(grad_lse, pair, query_grids, level, sample, head, heads, y, x)
        own_delta = share * own_delta - tl.load(from_lse, exists & has_grad_lse, 0.0)
        tl.store(query_pointers(delta, pair, query_grids, level, sample, head, heads, y, x), own_delta, in_grid)
        slope = tl.zeros((q.shape[0],), tl.float32)
        for start in range(0, count, KEYS):
            key_y, key_x, within = box_pixels(start, top, left, columns, count, KEYS)
            rows, cols = key_y.to(tl.int32), key_x.to(tl.int32)
            k = load_rows(key, other, sample, head, rows, cols, within, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
            v = load_rows(value, other, sample, head, rows, cols, within, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
            key_y = tl.where(within, key_y, FAR)
            margin = margins(reach[:, None], centre_y[:, None], centre_x[:, None], key_y[None, :], key_x[None, :])
            weight = ramp(margin, softness)
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
            d_weights = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
            d_weights = tl.exp2(logits - log_total[:, None]) * (share[:, None] * d_weights - own_delta[:, None])
            d_weights = tl.where(weight > 0, d_weights, 0.0)
            slope += tl.sum(tl.where(margin < 0, d_weights, 0.0), 1)
            if CAREFUL:
                k = tl.where(tl.abs(k.to(tl.float32)) < INFINITY, k, 0.0)
            d_q = tl.dot((weight * d_weights).to(DTYPE), k, d_q, input_precision=PRECISION)
        passes = (given >= 0.5) & (given <= pick_float(max_radius, pair))
        own = query_pointers(d_radius, pair, query_grids, level, sample, head, heads, y, x)
        has_radius = pick(d_radius, pair) != 0
        tl.store(own, tl.where(passes, slope / softness, 0.0), in_grid & has_radius)
        tiles = tiles_of(query_grids, level, TILE_Y, TILE_X)
        largest = pick(largest_radius, pair).to(tl.pointer_type(tl.float32))
        tl.store(largest + (sample.to(tl.int64) * tiles + tile) * heads + head, tl.max(reach, 0))
    d_q *= scale
    store_rows(d_q, d_query, level, sample, head, y, x, in_grid, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
    return all_finite(d_q)


@triton.jit
def attention_backward_keys(
    query, key, value, grad_out, d_key, d_value, radius, gate, lse, delta, largest_radius, query_grids, query_extents,
    key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, QUERY_TILE_Y: tl.constexpr,
    QUERY_TILE_X: tl.constexpr, QUERIES: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program, one tile of keys of one head: the gradients of keys and values, from every pair.

    Args:
        pairs: ``Pairs`` by level of the keys, the other side being the query's level.
        TILE_Y, TILE_X: shape of the tile of keys.
        QUERY_TILE_Y, QUERY_TILE_X: shape of the tiles that ``largest_radius`` was made with.
        QUERIES: queries a step.
        The others are as in the pass by queries.
    """
    finite = True
    if tl.program_id(1) == 0:
        finite = _differentiate_keys(
            query, key, value, grad_out, d_key, d_value, radius, gate, lse, delta, largest_radius, query_grids,
            query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads, DTYPE, CHANNELS,
            VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y, TILE_X, QUERY_TILE_Y, QUERY_TILE_X, QUERIES, ALIGNED, PRECISION,
            False,
        )  # fmt: skip
    if not finite:
        _differentiate_keys(
            query, key, value, grad_out, d_key, d_value, radius, gate, lse, delta, largest_radius, query_grids,
            query_extents, key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads, DTYPE, CHANNELS,
            VALUE_CHANNELS, BLOCK_D, BLOCK_V, TILE_Y, TILE_X, QUERY_TILE_Y, QUERY_TILE_X, QUERIES, ALIGNED, PRECISION,
            True,
        )  # fmt: skip


@triton.jit
def _differentiate_keys(
    query, key, value, grad_out, d_key, d_value, radius, gate, lse, delta, largest_radius, query_grids, query_extents,
    key_grids, key_extents, pairs, max_radius, softness, scale, batch, heads,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, QUERY_TILE_Y: tl.constexpr,
    QUERY_TILE_X: tl.constexpr, QUERIES: tl.constexpr, ALIGNED: tl.constexpr, PRECISION: tl.constexpr,
    CAREFUL: tl.constexpr,
):  # fmt: skip
    level, sample, head, tile = locate(key_grids, batch, heads, TILE_Y, TILE_X)
    y, x = tile_pixels(key_grids, level, tile, TILE_Y, TILE_X)
    height, width = extent_of(key_grids, key_extents, level, sample)
    in_grid = (y < pick(key_grids.height, level)) & (x < pick(key_grids.width, level))
    exists = (y < height) & (x < width)
    k = load_rows(key, level, sample, head, y, x, exists, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
    v = load_rows(value, level, sample, head, y, x, exists, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
    key_y, key_x = tl.where(exists, y.to(tl.float32), FAR), x.to(tl.float32)
    d_k = tl.zeros((k.shape[0], BLOCK_D), tl.float32)
    d_v = tl.zeros((k.shape[0], BLOCK_V), tl.float32)
    first, last = pairs_of(pairs, level)
    for pair in range(first, last):
        other = pick(pairs.other, pair)
        query_height, query_width = extent_of(query_grids, query_extents, other, sample)
        top, left, columns, count = query_box(
            y, x, exists, largest_radius, pair, query_grids, other, sample, head, heads, query_height, query_width,
            height, width, pick_float(max_radius, pair), softness, QUERY_TILE_Y, QUERY_TILE_X,
        )  # fmt: skip
        # Care is rare: what a pipeline holds ahead would spill.
        for start in tl.range(0, count, QUERIES, num_stages=1 if CAREFUL else None):
            query_y, query_x, within = box_pixels(start, top, left, columns, count, QUERIES)
            rows, cols = query_y.to(tl.int32), query_x.to(tl.int32)
            q = load_rows(query, other, sample, head, rows, cols, within, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
            d_out = load_rows(
                grad_out, other, sample, head, rows, cols, within, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED
            )
            reach, _, share = load_window(radius, max_radius, gate, pair, sample, head, rows, cols, within)
            log_total = LOG2_E * tl.load(
                query_pointers(lse, pair, query_grids, other, sample, head, heads, rows, cols), within, 0.0
            )
            log_total = tl.where(log_total == -INFINITY, 0.0, log_total)
            own_delta = tl.load(
                query_pointers(delta, pair, query_grids, other, sample, head, heads, rows, cols), within, 0.0
            )
            centre_y, centre_x = centre(query_y, query_height, height), centre(query_x, query_width, width)
            margin = margins(reach[None, :], centre_y[None, :], centre_x[None, :], key_y[:, None], key_x[:, None])
            weight = ramp(margin, softness)
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)
            d_weights = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
            weights = weight * tl.exp2(logits - log_total[None, :])
            d_logits = weights * (share[None, :] * d_weights - own_delta[None, :])
            d_logits = tl.where(weight > 0, d_logits, 0.0)
            weights = tl.where(weight > 0, weights * share[None, :], 0.0)
            if CAREFUL:
                q = tl.where(tl.abs(q.to(tl.float32)) < INFINITY, q, 0.0)
                d_out = tl.where(tl.abs(d_out.to(tl.float32)) < INFINITY, d_out, 0.0)
            d_v = tl.dot(weights.to(DTYPE), d_out, d_v, input_precision=PRECISION)
            d_k = tl.dot(d_logits.to(DTYPE), q, d_k, input_precision=PRECISION)
    d_k *= scale
    store_rows(d_k, d_key, level, sample, head, y, x, in_grid, DTYPE, CHANNELS, BLOCK_D, ALIGNED)
    store_rows(d_v, d_value, level, sample, head, y, x, in_grid, DTYPE, VALUE_CHANNELS, BLOCK_V, ALIGNED)
    return all_finite(d_k) & all_finite(d_v)

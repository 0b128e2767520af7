"""Cross-scale windowed attention in plain PyTorch, forward and backward, block by block of queries.

A block of about 7 x 7 queries meets only the keys that the block can reach, so memory is one block's logits however
large the grids are, and a small window costs less. Every step is differentiable, which is what double backward uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hamlet.ops.reference.windows import distances, spans


class Block(NamedTuple):
    """A block of queries against the keys it can reach; indices are into (B, H, W, N, ...) grids."""

    queries: tuple[slice, slice, slice]
    keys: tuple[slice, slice, slice]
    distance: Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    radius: Tensor | None,
    gate: Tensor | None,
    query_extent: Tensor | None,
    key_extent: Tensor | None,
    max_radius: float,
    softness: float,
    scale: float,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The output, in query's dtype unless told, and the log-sum-exp; ``radius`` None: ``max_radius`` at every query."""
    dtype = accumulation_dtype(query.dtype)
    out = query.new_zeros((*query.shape[:4], value.shape[4]), dtype=out_dtype)
    lse = query.new_full(query.shape[:4], -torch.inf, dtype=dtype)
    for block in _blocks(query, key, query_extent, key_extent, max_radius + softness, dtype):
        q, k, v = _rows(query, block.queries, dtype), _rows(key, block.keys, dtype), _rows(value, block.keys, dtype)
        ramp = _ramp(radius, block, max_radius, softness, dtype)
        logits = ((scale * q) @ k.mT).masked_fill(ramp.unreached, -torch.inf)
        largest = logits.detach().amax(-1, keepdim=True)
        largest = largest.masked_fill(largest == -torch.inf, 0)
        weights = ramp.weight * torch.exp(logits - largest)
        total = weights.sum(-1, keepdim=True)
        empty = total == 0
        result = (weights @ v.nan_to_num()) / total.masked_fill(empty, 1)
        # A value that is not finite must spoil the queries that reach it, and no other through 0 * NaN.
        spoilt = ramp.weight @ (~v.isfinite().all(-1, keepdim=True)).to(dtype) > 0
        result = result.masked_fill(spoilt, torch.nan)
        if gate is not None:
            result = result * _rows(gate, block.queries, dtype)
        log_total = (total.masked_fill(empty, 1).log() + largest).masked_fill(empty, -torch.inf)
        out[block.queries] = _grid(result, block.queries).to(out.dtype)
        lse[block.queries] = _grid(log_total, block.queries).squeeze(-1)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    radius: Tensor | None,
    gate: Tensor | None,
    query_extent: Tensor | None,
    key_extent: Tensor | None,
    max_radius: float,
    softness: float,
    scale: float,
    lse: Tensor,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of query, key and value, in their dtype unless told, and of radius and gate in their own."""
    dtype = accumulation_dtype(query.dtype)
    out_dtype = out_dtype or query.dtype
    d_query, d_key, d_value = (x.new_zeros(x.shape, dtype=dtype) for x in (query, key, value))
    d_radius = None if radius is None else radius.new_zeros(radius.shape)
    d_gate = None if gate is None else gate.new_zeros(gate.shape)
    for block in _blocks(query, key, query_extent, key_extent, max_radius + softness, dtype):
        q, k, v = _rows(query, block.queries, dtype), _rows(key, block.keys, dtype), _rows(value, block.keys, dtype)
        d_o = _rows(grad_out, block.queries, dtype)
        ramp = _ramp(radius, block, max_radius, softness, dtype)
        row_lse = _rows(lse, block.queries, dtype)
        logits = (scale * q) @ k.mT - row_lse.masked_fill(row_lse == -torch.inf, 0)
        unweighted = torch.exp(logits.masked_fill(ramp.unreached, -torch.inf))
        probability = ramp.weight * unweighted
        d_probability = (d_o @ v.mT).masked_fill(ramp.unreached, 0)
        ungated = (probability * d_probability).sum(-1, keepdim=True)
        d_unweighted = d_probability - ungated
        if gate is not None and d_gate is not None:
            block_gate = _rows(gate, block.queries, dtype)
            d_unweighted = d_unweighted * block_gate
            d_o = d_o * block_gate
            d_gate[block.queries] = _grid(ungated, block.queries).squeeze(-1).to(gate.dtype)
        if grad_lse is not None:
            d_unweighted = d_unweighted + _rows(grad_lse, block.queries, dtype)
        d_logits = (probability * d_unweighted).masked_fill(ramp.unreached, 0)
        d_query[block.queries] = _grid(scale * (d_logits @ k.nan_to_num()), block.queries)
        d_key[block.keys] += _grid(scale * (d_logits.mT @ q.nan_to_num()), block.keys)
        d_value[block.keys] += _grid(probability.mT @ d_o.nan_to_num(), block.keys)
        if radius is not None and d_radius is not None:
            d_own = _ramp_slope(unweighted * d_unweighted, ramp) / softness
            own = _rows(radius, block.queries, dtype)
            d_own = d_own.masked_fill((own < 0.5) | (own > max_radius), 0)
            d_radius[block.queries] = _grid(d_own, block.queries).squeeze(-1).to(radius.dtype)
    return d_query.to(out_dtype), d_key.to(out_dtype), d_value.to(out_dtype), d_radius, d_gate


class _Ramp(NamedTuple):
    """What the window gives each pair: (B or 1, N or 1, queries, keys)."""

    margin: Tensor
    """Radius less distance; the weight falls where it is negative."""
    unreached: Tensor
    weight: Tensor


def _ramp(radius: Tensor | None, block: Block, max_radius: float, softness: float, dtype: torch.dtype) -> _Ramp:
    clamped = max_radius if radius is None else _rows(radius, block.queries, dtype).clamp(0.5, max_radius)
    # The radius less the distance comes first: a key at exactly the radius then has weight 1 without rounding.
    margin = clamped - block.distance
    return _Ramp(margin, margin <= -softness, (1 + margin / softness).clamp(0, 1))


def _ramp_slope(d_weight: Tensor, ramp: _Ramp) -> Tensor:
    """What reaches a query's radius from the pairs on the sloping part of its ramp."""
    return d_weight.masked_fill(ramp.unreached | (ramp.margin >= 0), 0).sum(-1, keepdim=True)


def _blocks(
    query: Tensor,
    key: Tensor,
    query_extent: Tensor | None,
    key_extent: Tensor | None,
    reach: float,
    dtype: torch.dtype,
) -> Iterator[Block]:
    if 0 in query.shape[:4]:
        return
    query_extent, key_extent = _clamped(query_extent, query), _clamped(key_extent, key)
    query_sizes, key_sizes = _axis_sizes(query_extent, key_extent, query, key)
    rows, columns = (
        spans(query.shape[1 + axis], key.shape[1 + axis], query_sizes[axis], key_sizes[axis], reach) for axis in (0, 1)
    )
    row_distance, column_distance = (
        distances(
            query.shape[1 + axis],
            key.shape[1 + axis],
            None if query_extent is None else query_extent[:, axis],
            None if key_extent is None else key_extent[:, axis],
            query,
            dtype,
        )
        for axis in (0, 1)
    )
    every = slice(None)
    for row in rows:
        dy = row_distance[:, row.queries, row.keys]
        for column in columns:
            dx = column_distance[:, column.queries, column.keys]
            distance = torch.maximum(dy[:, :, None, :, None], dx[:, None, :, None, :])
            pairs = (distance.shape[0], 1, dy.shape[1] * dx.shape[1], dy.shape[2] * dx.shape[2])
            yield Block((every, row.queries, column.queries), (every, row.keys, column.keys), distance.reshape(pairs))


def _axis_sizes(
    query_extent: Tensor | None, key_extent: Tensor | None, query: Tensor, key: Tensor
) -> tuple[list[list[int] | None], list[list[int] | None]]:
    """Each axis's extents as lists, one entry a sample; both None where neither is given.

    Reading them synchronises with a GPU: this backend needs the size of its blocks before it can start.
    """
    if query_extent is None and key_extent is None:
        return [None, None], [None, None]

    def columns(extent: Tensor | None, grid: Tensor) -> list[list[int] | None]:
        pairs = [grid.shape[1:3]] * grid.shape[0] if extent is None else extent.tolist()
        return [[pair[axis] for pair in pairs] for axis in (0, 1)]

    return columns(query_extent, query), columns(key_extent, key)


def _clamped(extent: Tensor | None, grid: Tensor) -> Tensor | None:
    if extent is None:
        return None
    return extent.clamp(min=1).minimum(torch.tensor(grid.shape[1:3], device=extent.device))


def _rows(grid: Tensor, where: tuple[slice, slice, slice], dtype: torch.dtype) -> Tensor:
    """The pixels of a block as rows: (B, N, pixels, channels); a grid without channels gets one."""
    part = grid[where] if grid.ndim == 5 else grid[where].unsqueeze(-1)
    batch, height, width, heads, channels = part.shape
    return part.permute(0, 3, 1, 2, 4).reshape(batch, heads, height * width, channels).to(dtype)


def _grid(rows: Tensor, where: tuple[slice, slice, slice]) -> Tensor:
    """Rows (B, N, pixels, channels) back as (B, height, width, N, channels)."""
    height, width = (axis.stop - axis.start for axis in where[1:])
    return rows.unflatten(2, (height, width)).permute(0, 2, 3, 1, 4)

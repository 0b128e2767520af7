"""Attention between the levels of a pyramid on the native kernels: all pairs in one parallel region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.native.library import channels_together, extents, module, reasons
from hamlet.ops.reference.attention import accumulation_dtype
from hamlet.ops.reference.pyramid import pairs


def forward(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    radius: Sequence[Tensor],
    gate: Sequence[Tensor],
    extent: Sequence[Tensor],
    indices: Sequence[int],
    has_radius: Sequence[bool],
    has_gate: Sequence[bool],
    max_radius: Sequence[float],
    softness: float,
    scale: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The output of each level and the log-sum-exp of each pair."""
    queries, keys, values = (list(map(channels_together, level)) for level in (queries, keys, values))
    limits = [extents(own) for own in extent] or [None] * len(queries)
    outs = [query.new_empty((*query.shape[:4], values[0].shape[4])) for query in queries]
    layer = list(pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius))
    dtype = accumulation_dtype(queries[0].dtype)
    lses = [queries[pair.i].new_empty(queries[pair.i].shape[:4], dtype=dtype) for pair in layer]
    module.attention_forward(
        _levels(queries, outs, [None] * len(queries), limits),
        _levels(keys, values, [None] * len(queries), [None] * len(queries), limits),
        [
            (pair.i, pair.j, pair.max_radius, pair.radius, pair.gate, lse, None, None, None)
            for pair, lse in zip(layer, lses, strict=True)
        ],
        softness,
        scale,
        torch.get_num_threads(),
    )
    return outs, lses


def backward(
    grad_outs: Sequence[Tensor],
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    radius: Sequence[Tensor],
    gate: Sequence[Tensor],
    extent: Sequence[Tensor],
    indices: Sequence[int],
    has_radius: Sequence[bool],
    has_gate: Sequence[bool],
    max_radius: Sequence[float],
    softness: float,
    scale: float,
    lses: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of queries, keys, values, and of the radius and gate tensors in their flat order."""
    grad_outs, queries, keys, values = (
        list(map(channels_together, level)) for level in (grad_outs, queries, keys, values)
    )
    limits = [extents(own) for own in extent] or [None] * len(queries)
    dtype = queries[0].dtype
    # Several pairs add to the gradient of one level's queries.
    d_queries = [query.new_zeros(query.shape, dtype=accumulation_dtype(dtype)) for query in queries]
    d_keys, d_values = ([x.new_empty(x.shape) for x in level] for level in (keys, values))
    d_radius, d_gate = ([x.new_zeros(x.shape) for x in tensors] for tensors in (radius, gate))
    of_radius, of_gate = iter(d_radius), iter(d_gate)
    layer = pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius)
    module.attention_backward(
        _levels(queries, grad_outs, d_queries, limits),
        _levels(keys, values, d_keys, d_values, limits),
        [
            (
                *(pair.i, pair.j, pair.max_radius, pair.radius, pair.gate, lse, None),
                None if pair.radius is None else next(of_radius),
                None if pair.gate is None else next(of_gate),
            )
            for pair, lse in zip(layer, lses, strict=True)
        ],
        softness,
        scale,
        torch.get_num_threads(),
    )
    return [d_query.to(dtype) for d_query in d_queries], d_keys, d_values, d_radius, d_gate


def _levels(*columns: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
    """One tuple a level, of the level's tensors."""
    return list(zip(*columns, strict=True))


def why_not(queries: Sequence[Tensor], *rest: Any) -> list[str]:
    return reasons(queries[0])

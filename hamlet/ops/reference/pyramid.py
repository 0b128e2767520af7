"""Attention between the levels of a pyramid in plain PyTorch: the sum of its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from hamlet.ops.reference import attention


class Pair(NamedTuple):
    """One pair of levels: queries of level ``i`` on keys of level ``j``."""

    i: int
    j: int
    radius: Tensor | None
    gate: Tensor | None
    max_radius: float


def pairs(
    levels: int,
    indices: Sequence[int],
    radius: Sequence[Tensor],
    has_radius: Sequence[bool],
    gate: Sequence[Tensor],
    has_gate: Sequence[bool],
    max_radius: Sequence[float],
) -> Iterator[Pair]:
    """The pairs that the flat arguments of the registered operator stand for: index = i * levels + j.

    ``radius`` and ``gate`` hold the tensors of those pairs that have one, in order.
    """
    radii, gates = iter(radius), iter(gate)
    for index, with_radius, with_gate, bound in zip(indices, has_radius, has_gate, max_radius, strict=True):
        yield Pair(
            *divmod(index, levels), next(radii) if with_radius else None, next(gates) if with_gate else None, bound
        )


def forward(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    radius: Sequence[Tensor],
    gate: Sequence[Tensor],
    extents: Sequence[Tensor],
    indices: Sequence[int],
    has_radius: Sequence[bool],
    has_gate: Sequence[bool],
    max_radius: Sequence[float],
    softness: float,
    scale: float,
) -> tuple[list[Tensor], list[Tensor]]:
    """The output of each level and the log-sum-exp of each pair."""
    dtype = attention.accumulation_dtype(queries[0].dtype)
    outs = [q.new_zeros((*q.shape[:4], values[0].shape[4]), dtype=dtype) for q in queries]
    lses = []
    for pair in pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius):
        out, lse = attention.forward(
            *_of(pair, queries, keys, values, extents), pair.max_radius, softness, scale, dtype
        )
        outs[pair.i] = outs[pair.i] + out
        lses.append(lse)
    return [out.to(queries[0].dtype) for out in outs], lses


def backward(
    grad_outs: Sequence[Tensor],
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    radius: Sequence[Tensor],
    gate: Sequence[Tensor],
    extents: Sequence[Tensor],
    indices: Sequence[int],
    has_radius: Sequence[bool],
    has_gate: Sequence[bool],
    max_radius: Sequence[float],
    softness: float,
    scale: float,
    lses: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of queries, keys, values, and of the radius and gate tensors in their flat order."""
    dtype = attention.accumulation_dtype(queries[0].dtype)
    sums = [[x.new_zeros(x.shape, dtype=dtype) for x in level] for level in (queries, keys, values)]
    d_radius: list[Tensor] = []
    d_gate: list[Tensor] = []
    levels_of = pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius)
    for pair, lse in zip(levels_of, lses, strict=True):
        d_query, d_key, d_value, own_radius, own_gate = attention.backward(
            grad_outs[pair.i],
            None,
            *_of(pair, queries, keys, values, extents),
            pair.max_radius,
            softness,
            scale,
            lse,
            dtype,
        )
        for total, level, grad in zip(sums, (pair.i, pair.j, pair.j), (d_query, d_key, d_value), strict=True):
            total[level] = total[level] + grad
        if own_radius is not None:
            d_radius.append(own_radius)
        if own_gate is not None:
            d_gate.append(own_gate)
    d_queries, d_keys, d_values = ([x.to(queries[0].dtype) for x in level] for level in sums)
    return d_queries, d_keys, d_values, d_radius, d_gate


def _of(
    pair: Pair, queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], extents: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    query_extent, key_extent = (extents[pair.i], extents[pair.j]) if extents else (None, None)
    return queries[pair.i], keys[pair.j], values[pair.j], pair.radius, pair.gate, query_extent, key_extent

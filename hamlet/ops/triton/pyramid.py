"""Attention between the levels of a pyramid on the Triton kernels: one launch forward, two backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hamlet.ops.reference.pyramid import pairs
from hamlet.ops.triton.attention import limits
from hamlet.ops.triton.library import reasons


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
    from hamlet.ops.triton import layer

    limits: Sequence[Tensor | None] = extents or [None] * len(queries)
    own = pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius)
    return layer.forward(layer.Layer.of(queries, keys, values, limits, limits, own, softness, scale))


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
    from hamlet.ops.triton import layer

    limits: Sequence[Tensor | None] = extents or [None] * len(queries)
    own = pairs(len(queries), indices, radius, has_radius, gate, has_gate, max_radius)
    whole = layer.Layer.of(queries, keys, values, limits, limits, own, softness, scale)
    d_queries, d_keys, d_values, d_radii, d_gates = layer.backward(whole, grad_outs, lses, [None] * len(lses))
    of_radius, of_gate = ([x for x in gradients if x is not None] for gradients in (d_radii, d_gates))
    return (
        d_queries,
        d_keys,
        d_values,
        [x.to(own.dtype) for x, own in zip(of_radius, radius, strict=True)],
        [x.to(own.dtype) for x, own in zip(of_gate, gate, strict=True)],
    )


def why_not(queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any) -> list[str]:
    return reasons(queries[0]) or limits([*queries, *keys], [*queries, *values])

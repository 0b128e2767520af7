"""Cross-scale windowed attention on the native kernels: one pair of grids, or all pairs of a pyramid at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamlet.ops.native.library import channels_together, extents, module, reasons
from hamlet.ops.reference.attention import accumulation_dtype


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
) -> tuple[Tensor, Tensor]:
    """The output in query's dtype, and the log-sum-exp."""
    query, key, value = map(channels_together, (query, key, value))
    query_extent, key_extent = extents(query_extent), extents(key_extent)
    batch, height, width, heads, _ = query.shape
    out = torch.empty(batch, height, width, heads, value.shape[4], dtype=query.dtype)
    lse = torch.empty(batch, height, width, heads, dtype=accumulation_dtype(query.dtype))
    module.attention_forward(
        [(query, out, None, query_extent)],
        [(key, value, None, None, key_extent)],
        [(0, 0, max_radius, radius, gate, lse, None, None, None)],
        softness,
        scale,
        torch.get_num_threads(),
    )
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of query, key and value in their dtype, and of radius and gate in their own."""
    grad_out, query, key, value = map(channels_together, (grad_out, query, key, value))
    query_extent, key_extent = extents(query_extent), extents(key_extent)
    d_query = query.new_zeros(query.shape)
    d_key, d_value = (x.new_empty(x.shape) for x in (key, value))
    d_radius, d_gate = (None if x is None else x.new_zeros(x.shape) for x in (radius, gate))
    module.attention_backward(
        [(query, grad_out, d_query, query_extent)],
        [(key, value, d_key, d_value, key_extent)],
        [(0, 0, max_radius, radius, gate, lse, grad_lse, d_radius, d_gate)],
        softness,
        scale,
        torch.get_num_threads(),
    )
    return d_query, d_key, d_value, d_radius, d_gate


def why_not(query: Tensor, *rest: Any) -> list[str]:
    return reasons(query)

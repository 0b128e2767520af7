"""Cross-scale windowed attention on the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.reference.pyramid import Pair
from hamlet.ops.triton.library import interpreted, reasons

CHANNELS = 256
"""The most that a head's rows of keys, values and sums leave room for on a multiprocessor."""
PIXELS = 2**21
"""A larger grid has pixels that float32 does not tell apart by their number."""


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
    from hamlet.ops.triton import layer

    pair = Pair(0, 0, radius, gate, max_radius)
    (out,), (lse,) = layer.forward(
        layer.Layer.of([query], [key], [value], [query_extent], [key_extent], [pair], softness, scale)
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
    from hamlet.ops.triton import layer

    pair = Pair(0, 0, radius, gate, max_radius)
    one = layer.Layer.of([query], [key], [value], [query_extent], [key_extent], [pair], softness, scale)
    (d_query,), (d_key,), (d_value,), (d_radius,), (d_gate,) = layer.backward(one, [grad_out], [lse], [grad_lse])
    return d_query, d_key, d_value, like(radius, d_radius), like(gate, d_gate)


def like(tensor: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """``gradient`` in the dtype of the tensor that it belongs to."""
    return None if tensor is None or gradient is None else gradient.to(tensor.dtype)


def why_not(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[str]:
    return reasons(query) or limits([query, key], [query, value])


def limits(grids: Sequence[Tensor], with_channels: Sequence[Tensor]) -> list[str]:
    """Why the kernels cannot take tensors of these sizes."""
    pixels, channels = max(x.shape[1] * x.shape[2] for x in grids), max(x.shape[4] for x in with_channels)
    found = []
    if interpreted and any(x.dtype == torch.bfloat16 for x in with_channels):
        found.append("Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers")
    if channels > CHANNELS:
        found.append(f"it takes at most {CHANNELS} channels a head, got {channels}")
    if pixels > PIXELS:
        found.append(f"it takes grids of at most {PIXELS} pixels, got {pixels}")
    return found

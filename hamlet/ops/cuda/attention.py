"""Cross-scale windowed attention on the CUDA C++ kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamlet.ops.cuda import library
from hamlet.ops.native.library import channels_together, extents

CHANNELS = (16, 32, 64, 128)
"""Of a head, for which there are kernels."""
TILE = 8
"""Side of a tile of queries; csrc/cuda/attention_plan.h has the same."""
PIXELS = 2**21
"""A larger grid has pixels that float32 does not tell apart by their number."""
LARGEST_REACH = 1e9
"""A longer radius is the whole grid too, and what nothing may reach lies further away still."""
SHARPEST = 1e-30
"""A smaller softness has no reciprocal in float32, and is none already."""


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
    out = query.new_empty((*query.shape[:4], value.shape[4]))
    lse = query.new_empty(query.shape[:4], dtype=torch.float32)
    given = _given(query, key, value, radius, gate, query_extent, key_extent)
    _run(library.kernels.attention_forward, given | {"out": out, "lse": lse}, max_radius, softness, scale)
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
    batch, height, width, heads, _ = query.shape
    tiles = -(-height // TILE) * -(-width // TILE)
    d_query, d_key, d_value = (x.new_empty(x.shape) for x in (query, key, value))
    d_radius, d_gate = (None if x is None else lse.new_empty(x.shape) for x in (radius, gate))
    tensors = {
        "out": channels_together(grad_out),
        "lse": lse.contiguous(),
        "grad_lse": None if grad_lse is None else grad_lse.contiguous(),
        "d_query": d_query,
        "d_key": d_key,
        "d_value": d_value,
        "d_radius": d_radius,
        "d_gate": d_gate,
        "summaries": lse.new_empty((*lse.shape, 4)),
        "largest": lse.new_empty((batch, tiles, heads)),
    }
    tensors |= _given(query, key, value, radius, gate, query_extent, key_extent)
    _run(library.kernels.attention_backward_queries, tensors, max_radius, softness, scale)
    _run(library.kernels.attention_backward_keys, tensors, max_radius, softness, scale)
    return d_query, d_key, d_value, _like(radius, d_radius), _like(gate, d_gate)


def _given(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    radius: Tensor | None,
    gate: Tensor | None,
    query_extent: Tensor | None,
    key_extent: Tensor | None,
) -> dict[str, Tensor | None]:
    query, key, value = map(channels_together, (query, key, value))
    radius, gate = (None if x is None else x.to(torch.float32) for x in (radius, gate))
    query_extent, key_extent = extents(query_extent), extents(key_extent)
    names = ("query", "key", "value", "radius", "gate", "query_extent", "key_extent")
    return dict(zip(names, (query, key, value, radius, gate, query_extent, key_extent), strict=True))


def _run(kernel: Any, tensors: dict[str, Tensor | None], max_radius: float, softness: float, scale: float) -> None:
    query = tensors["query"]
    assert query is not None
    numbers = (min(max_radius, LARGEST_REACH), max(softness, SHARPEST), scale)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    kernel(tensors, *numbers, tf32, *library.where(query))


def _like(tensor: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return None if tensor is None or gradient is None else gradient.to(tensor.dtype)


def why_not(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> list[str]:
    found = library.reasons(query)
    channels, of_values = query.shape[4], value.shape[4]
    if channels not in CHANNELS or of_values != channels:
        sizes = ", ".join(map(str, CHANNELS))
        found.append(f"it takes {sizes} channels a head, the same of values, got {channels} and {of_values}")
    if (pixels := max(x.shape[1] * x.shape[2] for x in (query, key))) > PIXELS:
        found.append(f"it takes grids of at most {PIXELS} pixels, got {pixels}")
    if not found:
        needed = library.kernels.attention_shared_bytes(query.element_size(), channels)
        there = library.kernels.shared_bytes_of_device(library.where(query)[0])
        if needed > there:
            found.append(f"it needs {needed} bytes of shared memory a block, this GPU has {there}")
    return found

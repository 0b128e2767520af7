"""Cross-scale windowed attention: the public operator, its checks and its registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hamlet.ops import backends, checks
from hamlet.ops.cuda import attention as cuda
from hamlet.ops.native import attention as native
from hamlet.ops.reference import attention as reference
from hamlet.ops.registration import Operator, implement
from hamlet.ops.transforms import call
from hamlet.ops.triton import attention as triton

QUERY_SHAPE = "(B, Hq, Wq, N, D)"
KEY_SHAPE = "(B, Hk, Wk, N, D)"
VALUE_SHAPE = "(B, Hk, Wk, N, Dv)"


@overload
def cross_scale_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    radius: float | Tensor,
    max_radius: float,
    softness: float = ...,
    scale: float | None = ...,
    gate: Tensor | None = ...,
    query_extent: Tensor | None = ...,
    key_extent: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def cross_scale_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    radius: float | Tensor,
    max_radius: float,
    softness: float = ...,
    scale: float | None = ...,
    gate: Tensor | None = ...,
    query_extent: Tensor | None = ...,
    key_extent: Tensor | None = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
def cross_scale_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    radius: float | Tensor,
    max_radius: float,
    softness: float = 1.0,
    scale: float | None = None,
    gate: Tensor | None = None,
    query_extent: Tensor | None = None,
    key_extent: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention from one grid to a soft window on another grid, of any size, with a window for each query and head.

    Query pixel (y, x) has its centre on the key grid at ``cy = (y + 0.5) * hk / hq - 0.5`` and likewise ``cx``, h and w
    being the extents where given. With ``d = max(|ky - cy|, |kx - cx|)`` and r the clamped radius, a key has the weight
    ``m = clamp((r + softness - d) / softness, 0, 1)``::

        m  1 ________                       out = gate * sum_k P v
                     \\                      P   = m exp(scale q.k) / sum_k m exp(scale q.k)
           0          \\_________ d
                     r  r + softness

    Keys with m = 0 do not exist: whatever they hold, NaN included, changes nothing, and a smaller radius costs less
    time. The nearest key always has m = 1. With softness -> 0 and an integer radius R on equal grids this is
    neighbourhood attention of kernel 2 R + 1, its windows cut at the border, not shifted.

    Args:
        query: (B, Hq, Wq, N, D), N heads of D channels. Any strides; B, Hq, Wq, N and Dv may be 0.
        key: (B, Hk, Wk, N, D); Hk and Wk are unrelated to Hq and Wq.
        value: (B, Hk, Wk, N, Dv).
        radius: half-width of the window in key pixels, a number or a tensor broadcastable to (B, Hq, Wq, N), of any
            floating dtype. Differentiable.
        max_radius: at least 0.5. The radius is clamped into [0.5, max_radius]; its gradient passes inside and at both
            ends and is 0 outside.
        softness: width of the ramp at the window's edge in key pixels, > 0.
        scale: factor of the logits, ``D ** -0.5`` by default.
        gate: broadcastable to (B, Hq, Wq, N), of any floating dtype; multiplies the output. Differentiable.
        query_extent: int (B, 2), valid (height, width) of each sample's query grid. Queries outside give 0
            (log-sum-exp -inf) and no gradient.
        key_extent: int (B, 2), the same for the key grid. Keys outside do not exist.
        return_lse: also return the log-sum-exp, which is differentiable.
        backend: name one of ``"reference"``, ``"native"``, ``"triton"``, ``"cuda"``; chosen by itself otherwise.

    Returns:
        (B, Hq, Wq, N, Dv) in query's dtype, and, if asked for, the natural logarithm of ``sum_k m exp(scale q.k)``,
        (B, Hq, Wq, N) in the dtype of accumulation: float32, or float64 for float64 input.

    Raises:
        ValueError: for a shape, size, device or number that does not fit, for extents beyond the grid (seen on the CPU
            only; on a GPU they are clamped, as looking would cost a synchronisation), and for a backend asked for by
            name that cannot serve.
        TypeError: for anything that is not a floating-point tensor or a number where one is taken, and mixed dtypes
            (under autocast query, key and value are cast to one).

    Example:
        >>> import torch
        >>> query, key = torch.randn(2, 14, 14, 4, 16), torch.randn(2, 7, 7, 4, 16)
        >>> radius = torch.full((2, 14, 14, 4), 1.5, requires_grad=True)
        >>> out = cross_scale_attention(query, key, key, radius=radius, max_radius=3.0)
        >>> out.shape
        torch.Size([2, 14, 14, 4, 16])
        >>> out.sum().backward()
        >>> radius.grad.shape
        torch.Size([2, 14, 14, 4])

    Source: ACSA, §3.2 of the HAMLET architecture; windows after Hassani et al., "Neighborhood Attention Transformer"
    (CVPR 2023), with content-chosen soft edges after Sukhbaatar et al., "Adaptive Attention Span" (ACL 2019).
    """
    arguments = prepare(
        query, key, value, radius=radius, max_radius=max_radius, softness=softness, scale=scale, gate=gate,
        query_extent=query_extent, key_extent=key_extent,
    )  # fmt: skip
    out, lse = call(operator.forward, *arguments, backends.requested(backend))
    return (out, lse) if return_lse else out


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    radius: float | Tensor,
    max_radius: float,
    softness: float = 1.0,
    scale: float | None = None,
    gate: Tensor | None = None,
    query_extent: Tensor | None = None,
    key_extent: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """Check the public operator's arguments and return those of the registered one, less the backend."""
    checks.is_tensor("query", query, ndim=5, shape=QUERY_SHAPE)
    checks.is_tensor("key", key, ndim=5, shape=KEY_SHAPE)
    checks.is_tensor("value", value, ndim=5, shape=VALUE_SHAPE)
    checks.same_kind(query=query, key=key, value=value)
    grids(query, key, value)
    softness = checks.number("softness", softness, above=0)
    max_radius = checks.number("max_radius", max_radius, least=0.5)
    scale = default_scale(query) if scale is None else checks.number("scale", scale)
    radii: Tensor | None = None
    if isinstance(radius, Tensor):
        radii = checks.broadcastable("radius", radius, query.shape[:4], query, "(B, Hq, Wq, N)")
    else:
        # One radius for all is the bound itself: the kernels then need no tensor, and look no further than it reaches.
        max_radius = min(max(checks.number("radius", radius), 0.5), max_radius)
    if gate is not None:
        gate = checks.broadcastable("gate", gate, query.shape[:4], query, "(B, Hq, Wq, N)")
    for name, extent in (("query_extent", query_extent), ("key_extent", key_extent)):
        if extent is not None:
            checks.integer_tensor(name, extent, (query.shape[0], 2), query, "(B, 2)")
    return query, key, value, radii, gate, query_extent, key_extent, max_radius, softness, scale


def grids(query: Tensor, key: Tensor, value: Tensor, suffix: str = "") -> None:
    """Raise unless the sizes of query, key and value go together; ``suffix`` is added to their names."""
    batch, _, _, heads, channels = query.shape
    _, height, width, _, _ = key.shape
    checks.sizes(f"key{suffix}", key, (batch, None, None, heads, channels), f"{KEY_SHAPE} of the query")
    checks.sizes(f"value{suffix}", value, (batch, height, width, heads, None), f"{VALUE_SHAPE} on the key's grid")
    if (height == 0 or width == 0) and 0 not in query.shape[:4]:
        raise ValueError(
            f"key{suffix}: got shape {tuple(key.shape)}, expected at least one pixel for the queries to see"
        )


def default_scale(query: Tensor) -> float:
    return query.shape[4] ** -0.5 if query.shape[4] else 1.0


def _check_values(query: Tensor, key: Tensor, value: Tensor, radius: Any, gate: Any, *rest: Any) -> None:
    for name, extent, grid in (("query_extent", rest[0], query), ("key_extent", rest[1], key)):
        if extent is not None:
            checks.extent_values(name, extent, *grid.shape[1:3])


def fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:4], value.shape[4]))
    return out, query.new_empty(query.shape[:4], dtype=reference.accumulation_dtype(query.dtype))


def _incoming(gradients: Sequence[Tensor | None], inputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    d_out, d_lse = gradients
    return fake(*inputs)[0].zero_() if d_out is None else d_out, d_lse


operator = Operator(
    "cross_scale_attention",
    arguments=(
        "Tensor query, Tensor key, Tensor value, Tensor? radius, Tensor? gate, Tensor? query_extent, "
        "Tensor? key_extent, float max_radius, float softness, float scale"
    ),
    results="(Tensor, Tensor)",
    incoming="Tensor grad_out, Tensor? grad_lse",
    kept="Tensor lse",
    outgoing="(Tensor, Tensor, Tensor, Tensor, Tensor)",
    differentiable=(0, 1, 2, 3, 4),
)

implement(
    operator,
    backends.Backend("reference", reference.forward, reference.backward, lambda *arguments: []),
    check_values=_check_values,
    fake=fake,
    fake_gradient=lambda tensor: torch.empty_like(tensor, memory_format=torch.contiguous_format),
    kept=lambda results: (results[1],),
    incoming=_incoming,
)
backends.register(operator.name, backends.Backend("native", native.forward, native.backward, native.why_not))
backends.register(operator.name, backends.Backend("triton", triton.forward, triton.backward, triton.why_not))
backends.register(operator.name, backends.Backend("cuda", cuda.forward, cuda.backward, cuda.why_not))

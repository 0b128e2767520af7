"""Cross-scale windowed attention between all levels of a pyramid at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops import attention, backends, checks
from hamlet.ops.native import pyramid as native
from hamlet.ops.reference import pyramid as reference
from hamlet.ops.registration import Operator, implement
from hamlet.ops.transforms import call
from hamlet.ops.triton import pyramid as triton

Nested = Sequence[Sequence[Any]]


def pyramid_attention(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    radius: Nested,
    max_radius: Nested,
    softness: float = 1.0,
    scale: float | None = None,
    gate: Nested | None = None,
    extents: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """One layer of attention between the levels of a pyramid: every level's queries on every level's keys.

    ``out_i = sum_j gate_ij * cross_scale_attention(q_i, k_j, v_j, radius=radius_ij, max_radius=max_radius_ij)``, with
    no intermediate for each pair in memory beside its log-sum-exp.

    Args:
        queries: L tensors (B, Hi, Wi, N, D).
        keys: L tensors (B, Hi, Wi, N, D), on any grids.
        values: L tensors (B, Hi, Wi, N, Dv), each on its key's grid.
        radius: L x L nested list; entry [i][j], for queries of level i on keys of level j, is a number, a tensor
            broadcastable to (B, Hi, Wi, N), in pixels of level j, or None, which skips the pair.
        max_radius: L x L nested list of numbers, at least 0.5 (entries of skipped pairs are not read).
        softness, scale: as in :func:`cross_scale_attention`.
        gate: L x L nested list of tensors broadcastable to (B, Hi, Wi, N), or None where there is no gate.
        extents: L int tensors (B, 2), valid (height, width) of each sample at each level, for queries and keys alike.
        backend: as in :func:`cross_scale_attention`.

    Returns:
        L tensors (B, Hi, Wi, N, Dv); zeros for a level whose pairs are all skipped.

    Raises:
        ValueError, TypeError: as :func:`cross_scale_attention`, the argument named with its level or pair; and when
            every pair is skipped.

    Example:
        >>> import torch
        >>> levels = [torch.randn(1, 8, 8, 2, 16), torch.randn(1, 4, 4, 2, 16)]
        >>> gate = [[None, torch.full((1, 1, 1, 2), 0.5)], [None, None]]
        >>> out = pyramid_attention(levels, levels, levels, radius=[[2.0, 1.0], [None, 1.0]],
        ...                         max_radius=[[3.0, 1.5], [3.0, 1.5]], gate=gate)
        >>> [tuple(level.shape) for level in out]
        [(1, 8, 8, 2, 16), (1, 4, 4, 2, 16)]

    Source: ACSA, §3.2 of the HAMLET architecture.
    """
    arguments = prepare(
        queries, keys, values, radius=radius, max_radius=max_radius, softness=softness, scale=scale, gate=gate,
        extents=extents,
    )  # fmt: skip
    outs, _ = call(operator.forward, *arguments, backends.requested(backend))
    return list(outs)


def prepare(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    radius: Nested,
    max_radius: Nested,
    softness: float = 1.0,
    scale: float | None = None,
    gate: Nested | None = None,
    extents: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """Check the public operator's arguments and return those of the registered one, less the backend."""
    queries, keys, values = _levels(queries, keys, values)
    count = len(queries)
    scale = attention.default_scale(queries[0]) if scale is None else scale
    _square("radius", radius, count)
    _square("max_radius", max_radius, count)
    if gate is not None:
        _square("gate", gate, count)
    if extents is not None:
        _sequence("extents", extents, count, "int tensors (B, 2)")
        for level, extent in enumerate(extents):
            checks.integer_tensor(f"extents[{level}]", extent, (queries[0].shape[0], 2), queries[0], "(B, 2)")
    pairs = [divmod(index, count) for index in range(count * count)]
    pairs = [(i, j) for i, j in pairs if radius[i][j] is not None]
    if not pairs:
        raise ValueError("radius: got None for every pair, expected at least one pair of levels")
    radii, gates, bounds = [], [], []
    for i, j in pairs:
        try:
            checked = attention.prepare(
                queries[i], keys[j], values[j], radius=radius[i][j], max_radius=max_radius[i][j], softness=softness,
                scale=scale, gate=gate[i][j] if gate is not None else None,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise type(error)(f"pair [{i}][{j}]: {error}") from None
        *_, own_radius, own_gate, _, _, bound, softness, scale = checked
        radii.append(own_radius)
        gates.append(own_gate)
        bounds.append(bound)
    indices = [count * i + j for i, j in pairs]
    has_radius, has_gate = ([item is not None for item in items] for items in (radii, gates))
    radii, gates = ([item for item in items if item is not None] for items in (radii, gates))
    extents = list(extents or [])
    return queries, keys, values, radii, gates, extents, indices, has_radius, has_gate, bounds, softness, scale


def _levels(*sides: Sequence[Tensor]) -> list[list[Tensor]]:
    """The queries, keys and values as lists of tensors that agree in what all levels share."""
    names = ("queries", "keys", "values")
    count = len(sides[0]) if isinstance(sides[0], list | tuple) else 0
    for name, side in zip(names, sides, strict=True):
        _sequence(name, side, max(count, 1), "tensors (B, Hi, Wi, N, channels)")
        for level, tensor in enumerate(side):
            checks.is_tensor(f"{name}[{level}]", tensor, ndim=5, shape="(B, Hi, Wi, N, channels)")
    first = sides[0][0]
    named = {f"{name}[{level}]": x for name, side in zip(names, sides, strict=True) for level, x in enumerate(side)}
    checks.same_kind(**named)
    batch, _, _, heads, channels = first.shape
    for name, tensor in named.items():
        width = sides[2][0].shape[4] if name.startswith("values") else channels
        checks.sizes(name, tensor, (batch, None, None, heads, width), "B, N and the channels shared by all levels")
    return [list(side) for side in sides]


def _sequence(name: str, value: object, count: int, of: str) -> None:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a list of {of}")
    if len(value) != count:
        raise ValueError(f"{name}: got {len(value)} levels, expected {count} {of}")


def _square(name: str, value: object, count: int) -> None:
    rows = list(value) if isinstance(value, list | tuple) else []
    if len(rows) != count or any(not isinstance(row, list | tuple) or len(row) != count for row in rows):
        raise ValueError(f"{name}: got {_outline(value)}, expected a {count} x {count} nested list, one entry a pair")


def _outline(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} with rows of " + ", ".join(
            str(len(row)) if isinstance(row, list | tuple) else type(row).__name__ for row in value
        )
    return type(value).__name__


def _check_values(queries: Sequence[Tensor], keys: Sequence[Tensor], *rest: Any) -> None:
    extents = rest[3]
    for level, extent in enumerate(extents):
        for name, grid in (("queries", queries[level]), ("keys", keys[level])):
            checks.extent_values(f"extents[{level}] on {name}", extent, *grid.shape[1:3])


def _fake(
    queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor], *rest: Any
) -> tuple[list[Tensor], list[Tensor]]:
    indices = rest[3]
    outs = [attention.fake(query, keys[0], values[0])[0] for query in queries]
    lses = [attention.fake(queries[index // len(queries)], keys[0], values[0])[1] for index in indices]
    return outs, lses


def _incoming(gradients: Sequence[Any], inputs: Sequence[Any]) -> tuple[list[Tensor]]:
    outs, _ = _fake(*inputs)
    given = gradients[0] or [None] * len(outs)
    return ([out.zero_() if grad is None else grad for grad, out in zip(given, outs, strict=True)],)


operator = Operator(
    "pyramid_attention",
    arguments=(
        "Tensor[] queries, Tensor[] keys, Tensor[] values, Tensor[] radius, Tensor[] gate, Tensor[] extents, "
        "int[] indices, bool[] has_radius, bool[] has_gate, float[] max_radius, float softness, float scale"
    ),
    results="(Tensor[], Tensor[])",
    incoming="Tensor[] grad_outs",
    kept="Tensor[] lses",
    outgoing="(Tensor[], Tensor[], Tensor[], Tensor[], Tensor[])",
    differentiable=(0, 1, 2, 3, 4),
)

implement(
    operator,
    backends.Backend("reference", reference.forward, reference.backward, lambda *arguments: []),
    check_values=_check_values,
    fake=_fake,
    fake_gradient=lambda tensor: torch.empty_like(tensor, memory_format=torch.contiguous_format),
    kept=lambda results: (results[1],),
    incoming=_incoming,
)
backends.register(operator.name, backends.Backend("native", native.forward, native.backward, native.why_not))
backends.register(operator.name, backends.Backend("triton", triton.forward, triton.backward, triton.why_not))

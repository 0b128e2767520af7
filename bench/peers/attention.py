"""Cross-scale windowed attention as others would write it in PyTorch.

Every peer is made for a :class:`Case` and then takes (query, key, value), each (B, H, W, N, D), and a radius for each
query and head, (B, H, W, N); without one the case's radius rules, and the mask is made once, outside the timing, as are
the indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bench.clock import DEVICE
from bench.peers.compiler import compiled

BLOCK = 7
LEAST = 1e-30
"""Weight of a pair outside the window: the logarithm of zero has no gradient."""
STEPS = 1024
"""To a key pixel, in drawn radii."""

Attend = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """Square grids and the largest window, in key pixels."""

    queries: int
    keys: int
    radius: float
    batch: int = 8
    heads: int = 8
    channels: int = 32
    softness: float = 1.0

    def __str__(self) -> str:
        rest = f"B{self.batch} N{self.heads} D{self.channels}"
        return f"{self.queries}x{self.queries} on {self.keys}x{self.keys}, r {self.radius:g}, {rest}"

    def small(self) -> Case:
        """The same relation of grids, on a few pixels."""
        sides = {"queries": max(1, self.queries * 2 // 7), "keys": max(1, self.keys * 2 // 7)}
        return replace(self, **sides, radius=max(1.0, self.radius / 2), batch=min(self.batch, 2), heads=2)

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        shapes = [(self.batch, side, side, self.heads, self.channels) for side in (self.queries, self.keys, self.keys)]
        return [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in shapes]

    def axis(self) -> Tensor:
        """|key - centre of the query| along one axis, float64 (queries, keys)."""
        queries = torch.arange(self.queries, dtype=torch.float64, device=DEVICE)
        centre = (queries + 0.5) * self.keys / self.queries - 0.5
        return (torch.arange(self.keys, device=DEVICE) - centre[:, None]).abs()

    def radii(self, low: float, high: float) -> Tensor:
        """A radius for each query and head, drawn between two shares of the way from 0.5 to the largest.

        Half-way between the steps, so that no rounding decides which keys a window has.
        """
        shape = (self.batch, self.queries, self.queries, self.heads)
        drawn = 0.5 + (low + (high - low) * torch.rand(shape, device=DEVICE)) * (self.radius - 0.5)
        return ((drawn * STEPS).floor().clamp(max=self.radius * STEPS - 1) + 0.5) / STEPS

    def log_ramp(self, distance: Tensor, radius: float | Tensor) -> Tensor:
        return ((radius + self.softness - distance) / self.softness).clamp(LEAST, 1).log()

    def pairs(self, radius: Tensor | None = None) -> int:
        """Pairs of a query and a key of non-zero weight, over the batch and the heads."""
        axis = self.axis()
        if radius is None:
            return self.batch * self.heads * int((axis < self.radius + self.softness).sum()) ** 2
        reach = radius[..., None] + self.softness
        rows, columns = ((side < reach).sum(-1) for side in (axis[:, None, None], axis[:, None]))
        return int((rows * columns).sum())


Make = Callable[[Case, torch.dtype], Attend]


def exact(case: Case) -> Attend:
    """The definition in float64, a row of queries at a time on the rows of keys that its windows reach.

    Dense logits of all would not fit into memory.
    """
    axis = case.axis()

    def row(number: int, query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None) -> Tensor:
        reached = (axis[number] < case.radius + case.softness).nonzero().flatten()
        rows = slice(int(reached[0]), int(reached[-1]) + 1)
        k, v = (x[:, rows].flatten(1, 2) for x in (key, value))
        distance = torch.maximum(axis[number, rows, None], axis[:, None]).flatten(1)
        widest = case.radius if radius is None else radius[:, number].transpose(1, 2)[..., None]
        logits = torch.einsum("bqnd,bknd->bnqk", query[:, number], k) * case.channels**-0.5
        weights = (logits + case.log_ramp(distance, widest)).softmax(-1)
        return torch.einsum("bnqk,bknd->bqnd", weights, v)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        given = (query, key, value, radius)
        return torch.stack([checkpoint(row, i, *given, use_reentrant=False) for i in range(case.queries)], 1)

    return attend


def _heads_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _grid(x: Tensor, side: int) -> Tensor:
    return x.unflatten(2, (side, side)).permute(0, 2, 3, 1, 4)


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Of pairs, from distances (..., queries, keys) along each axis: (..., Q, Q', K, K')."""
    return torch.maximum(rows[..., :, None, :, None], columns[..., None, :, None, :])


def _log_mask(
    case: Case, dtype: torch.dtype, distance: Tensor, arrange: Callable[[Tensor], Tensor]
) -> Callable[[Tensor | None], Tensor]:
    """What gives the logarithms of the weights; ``arrange`` puts (B, H, W, N, 1) beside ``distance``."""
    fixed, near = case.log_ramp(distance, case.radius).to(dtype), distance.to(dtype)
    del distance

    def mask(radius: Tensor | None) -> Tensor:
        return fixed if radius is None else case.log_ramp(near, arrange(radius[..., None]))

    return mask


def _dense_mask(case: Case, dtype: torch.dtype) -> Callable[[Tensor | None], Tensor]:
    axis = case.axis().to(torch.promote_types(dtype, torch.float32))
    return _log_mask(case, dtype, _distances(axis, axis).flatten(2, 3).flatten(0, 1), _heads_first)


def dense(case: Case, dtype: torch.dtype) -> Attend:
    mask = _dense_mask(case, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        q, k, v = map(_heads_first, (query, key, value))
        return _grid(torch.softmax(q @ k.mT * case.channels**-0.5 + mask(radius), -1) @ v, case.queries)

    return attend


def sdpa(case: Case, dtype: torch.dtype) -> Attend:
    mask = _dense_mask(case, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        q, k, v = map(_heads_first, (query, key, value))
        return _grid(F.scaled_dot_product_attention(q, k, v, attn_mask=mask(radius)), case.queries)

    return attend


def _window(case: Case) -> tuple[Tensor, Tensor]:
    """The keys of each query's window, as many as the largest has, and their distances: (Q, Q, w * w)."""
    axis = case.axis()
    reach = case.radius + case.softness
    width = min(case.keys, int((axis < reach).sum(1).max()))
    nearest = axis.argsort(1)[:, :width].sort(1).values
    near = axis.gather(1, nearest)
    flat = nearest[:, None, :, None] * case.keys + nearest[None, :, None, :]
    return flat.flatten(2), _distances(near, near).flatten(2)


def gather(case: Case, dtype: torch.dtype) -> Attend:
    """The window of every query gathered, then multiplied and summed."""
    flat, distance = _window(case)
    mask = _log_mask(case, dtype, distance[:, :, None], lambda radius: radius)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        k, v = (x.flatten(1, 2)[:, flat] for x in (key, value))
        logits = torch.einsum("bhwnd,bhwknd->bhwnk", query, k) * case.channels**-0.5 + mask(radius)
        return torch.einsum("bhwnk,bhwknd->bhwnd", logits.softmax(-1), v)

    return attend


def gather_sum(case: Case, dtype: torch.dtype) -> Attend:
    """The same written as multiply-and-sum, which a compiler fuses so that no window is stored."""
    flat, distance = _window(case)
    mask = _log_mask(case, dtype, distance[..., None], lambda radius: radius.transpose(3, 4))

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        k, v = (x.flatten(1, 2)[:, flat] for x in (key, value))
        logits = (query[:, :, :, None] * k).sum(-1) * case.channels**-0.5 + mask(radius)
        return (logits.softmax(3)[..., None] * v).sum(3)

    return attend


def blocks(case: Case, dtype: torch.dtype) -> Attend:
    """SDPA of blocks of 7 x 7 queries against their keys with the halo, all blocks in one batch."""
    axis = case.axis()
    reach = case.radius + case.softness
    padded = math.ceil(case.queries / BLOCK) * BLOCK
    count = padded // BLOCK
    starts, width = [], 0
    for block in range(count):
        reached = (axis[block * BLOCK : (block + 1) * BLOCK] < reach).any(0).nonzero().flatten()
        starts.append(int(reached[0]))
        width = max(width, int(reached[-1]) + 1 - starts[-1])
    width = min(width, case.keys)
    first = torch.tensor(starts, device=DEVICE).clamp(max=case.keys - width)
    index = first[:, None] + torch.arange(width, device=DEVICE)
    rows = F.pad(axis, (0, 0, 0, padded - case.queries)).unflatten(0, (count, BLOCK))
    rows = rows.gather(2, index[:, None].expand(-1, BLOCK, -1))
    distance = _distances(rows[:, None], rows[None]).flatten(4, 5).flatten(2, 3)[None, :, :, None]
    outside = padded - case.queries

    def blocked(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, outside, 0, outside)) if outside else x
        return x.unflatten(1, (count, BLOCK)).unflatten(3, (count, BLOCK)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)

    mask = _log_mask(case, dtype, distance, blocked)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        q = blocked(query)
        k, v = (x[:, index][:, :, :, index].permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5) for x in (key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask(radius))
        out = out.unflatten(4, (BLOCK, BLOCK)).permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
        return out[:, : case.queries, : case.queries]

    return attend


def flex(case: Case, dtype: torch.dtype) -> Attend:
    """Compiled FlexAttention with ``score + log(ramp)`` and a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ratio, side, keys = case.keys / case.queries, case.queries, case.keys

    def distance(q: Tensor, k: Tensor) -> Tensor:
        dy = (k // keys - ((q // side + 0.5) * ratio - 0.5)).abs()
        dx = (k % keys - ((q % side + 0.5) * ratio - 0.5)).abs()
        return torch.maximum(dy, dx)

    def log_ramp(q: Tensor, k: Tensor, radius: float | Tensor) -> Tensor:
        return torch.log(((radius + case.softness - distance(q, k)) / case.softness).clamp(LEAST, 1))

    def fixed(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return value + log_ramp(q, k, case.radius)

    def reaches(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return distance(q, k) < case.radius + case.softness

    block_mask = create_block_mask(reaches, None, None, side * side, keys * keys, device=str(DEVICE))
    compiled_flex = compiled(flex_attention)

    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Tensor | None = None) -> Tensor:
        q, k, v = (_heads_first(x).contiguous() for x in (query, key, value))
        score = fixed
        if radius is not None:
            drawn = radius.permute(0, 3, 1, 2).flatten(2)

            def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return value + log_ramp(q, k, drawn[b, h, q])

        return _grid(compiled_flex(q, k, v, score_mod=score, block_mask=block_mask), side)

    return attend


EAGER: dict[str, Make] = {"dense logits + mask": dense, "SDPA + log-mask": sdpa, "gather + einsum": gather}
FOR_THE_COMPILER: dict[str, Make] = {"compiled gather": gather_sum, "compiled halo blocks": blocks}
PEERS: dict[str, Make] = {
    **EAGER,
    **{name: lambda case, dtype, make=make: compiled(make(case, dtype)) for name, make in FOR_THE_COMPILER.items()},
    "compiled FlexAttention": flex,
}
STRONGEST = ("SDPA + log-mask", *FOR_THE_COMPILER)

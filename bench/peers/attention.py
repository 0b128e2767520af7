"""Cross-scale windowed attention as others would write it in PyTorch, one radius for all queries.

Every peer is made for a :class:`Case` and then takes (query, key, value), each (B, H, W, N, D); what does not depend on
them (masks, indices) is made once, outside the timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 7

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Square grids and the window, in key pixels."""

    queries: int
    keys: int
    radius: float
    batch: int = 8
    heads: int = 8
    channels: int = 32
    softness: float = 1.0

    def __str__(self) -> str:
        return f"{self.queries}x{self.queries} on {self.keys}x{self.keys}, r {self.radius:g}, B{self.batch}"

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        sides = (self.queries, self.keys, self.keys)
        return [torch.randn(self.batch, side, side, self.heads, self.channels, dtype=dtype) for side in sides]

    def axis(self) -> Tensor:
        """|key - centre of the query| along one axis, float64 (queries, keys)."""
        centre = (torch.arange(self.queries, dtype=torch.float64) + 0.5) * self.keys / self.queries - 0.5
        return (torch.arange(self.keys) - centre[:, None]).abs()

    def ramp(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Weights of pairs from distances (..., queries, keys) along each axis: (..., Q, Q', K, K')."""
        distance = torch.maximum(rows[..., :, None, :, None], columns[..., None, :, None, :])
        return ((self.radius + self.softness - distance) / self.softness).clamp(0, 1)

    def ramp_of_windows(self, distance: Tensor) -> Tensor:
        """Weights of each query's own window, from its distances (queries, w) along an axis: (Q, Q, w * w)."""
        square = torch.maximum(distance[:, None, :, None], distance[None, :, None, :]).flatten(2)
        return ((self.radius + self.softness - square) / self.softness).clamp(0, 1)

    def pairs(self) -> int:
        """Pairs of a query and a key of non-zero weight, over the batch and the heads."""
        reached = int((self.axis() < self.radius + self.softness).sum())
        return self.batch * self.heads * reached**2


def _heads_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _grid(x: Tensor, side: int) -> Tensor:
    return x.unflatten(2, (side, side)).permute(0, 2, 3, 1, 4)


def _log_mask(case: Case, dtype: torch.dtype) -> Tensor:
    axis = case.axis()
    return case.ramp(axis, axis).flatten(2, 3).flatten(0, 1).log().to(dtype)


def dense(case: Case, dtype: torch.dtype) -> Attend:
    mask = _log_mask(case, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = map(_heads_first, (query, key, value))
        return _grid(torch.softmax(q @ k.mT * case.channels**-0.5 + mask, -1) @ v, case.queries)

    return attend


def sdpa(case: Case, dtype: torch.dtype) -> Attend:
    mask = _log_mask(case, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _grid(
            F.scaled_dot_product_attention(*map(_heads_first, (query, key, value)), attn_mask=mask), case.queries
        )

    return attend


def _window(case: Case) -> tuple[Tensor, Tensor]:
    """The nearest keys of each query of one axis, as many as any query reaches, and their distances: (queries, w)."""
    axis = case.axis()
    reach = case.radius + case.softness
    width = min(case.keys, int((axis < reach).sum(1).max()))
    nearest = axis.argsort(1)[:, :width].sort(1).values
    return nearest, axis.gather(1, nearest)


def gather(case: Case, dtype: torch.dtype) -> Attend:
    """The window of every query gathered, then multiplied and summed."""
    index, distance = _window(case)
    mask = case.ramp_of_windows(distance).log().to(dtype)
    flat = (index[:, None, :, None] * case.keys + index[None, :, None, :]).flatten(2)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = (x.flatten(1, 2)[:, flat] for x in (key, value))
        logits = torch.einsum("bhwnd,bhwknd->bhwnk", query, k) * case.channels**-0.5 + mask[:, :, None]
        return torch.einsum("bhwnk,bhwknd->bhwnd", logits.softmax(-1), v)

    return attend


def compiled_gather(case: Case, dtype: torch.dtype) -> Attend:
    """The same written as multiply-and-sum, which the compiler fuses so that no window is stored."""
    index, distance = _window(case)
    mask = case.ramp_of_windows(distance).log().to(dtype)
    flat = (index[:, None, :, None] * case.keys + index[None, :, None, :]).flatten(2)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = (x.flatten(1, 2)[:, flat] for x in (key, value))
        logits = (query[:, :, :, None] * k).sum(-1) * case.channels**-0.5 + mask[..., None]
        return (logits.softmax(3)[..., None] * v).sum(3)

    return torch.compile(attend, dynamic=False)


def compiled_blocks(case: Case, dtype: torch.dtype) -> Attend:
    """SDPA of blocks of 7 x 7 queries against their keys with the halo, all blocks in one batch, compiled."""
    axis = case.axis()
    reach = case.radius + case.softness
    padded = math.ceil(case.queries / BLOCK) * BLOCK
    blocks = padded // BLOCK
    starts, width = [], 0
    for block in range(blocks):
        reached = (axis[block * BLOCK : (block + 1) * BLOCK] < reach).any(0).nonzero().flatten()
        starts.append(int(reached[0]))
        width = max(width, int(reached[-1]) + 1 - starts[-1])
    width = min(width, case.keys)
    first = torch.tensor(starts).clamp(max=case.keys - width)
    index = first[:, None] + torch.arange(width)
    rows = F.pad(axis, (0, 0, 0, padded - case.queries)).unflatten(0, (blocks, BLOCK))
    rows = rows.gather(2, index[:, None].expand(-1, BLOCK, -1))
    weights = case.ramp(rows[:, None], rows[None])
    mask = weights.flatten(4, 5).flatten(2, 3).log().to(dtype)[None, :, :, None]
    outside = padded - case.queries

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q = F.pad(query, (0, 0, 0, 0, 0, outside, 0, outside)) if outside else query
        q = q.unflatten(1, (blocks, BLOCK)).unflatten(3, (blocks, BLOCK)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)
        k, v = (x[:, index][:, :, :, index].permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5) for x in (key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.unflatten(4, (BLOCK, BLOCK)).permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
        return out[:, : case.queries, : case.queries]

    return torch.compile(attend, dynamic=False)


def flex(case: Case, dtype: torch.dtype) -> Attend:
    """Compiled FlexAttention with ``score + log(ramp)`` and a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ratio, side, keys = case.keys / case.queries, case.queries, case.keys

    def distance(q: Tensor, k: Tensor) -> Tensor:
        dy = (k // keys - ((q // side + 0.5) * ratio - 0.5)).abs()
        dx = (k % keys - ((q % side + 0.5) * ratio - 0.5)).abs()
        return torch.maximum(dy, dx)

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        weight = (case.radius + case.softness - distance(q, k)) / case.softness
        return value + torch.log(weight.clamp(1e-30, 1))

    def reaches(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return distance(q, k) < case.radius + case.softness

    block_mask = create_block_mask(reaches, None, None, side * side, keys * keys, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_heads_first(x).contiguous() for x in (query, key, value))
        return _grid(compiled(q, k, v, score_mod=score, block_mask=block_mask), side)

    return attend


PEERS: dict[str, Callable[[Case, torch.dtype], Attend]] = {
    "dense logits + mask": dense,
    "SDPA + log-mask": sdpa,
    "gather + einsum": gather,
    "compiled gather": compiled_gather,
    "compiled 7x7 blocks": compiled_blocks,
    "compiled FlexAttention": flex,
}

"""Where the window of a query lies on the key grid: the half-pixel convention, extents, and blocks of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 7
"""Queries a side of a block: it divides the grids of a 224-pixel image's pyramid, and its logits stay in cache."""


class Span(NamedTuple):
    """A run of queries along one axis, and the run of keys that any of them can reach."""

    queries: slice
    keys: slice


def spans(
    queries: int,
    keys: int,
    query_extents: Sequence[int] | None,
    key_extents: Sequence[int] | None,
    reach: float,
    block: int = BLOCK,
) -> list[Span]:
    """Blocks of one axis, each with the union over the samples of the keys closer than ``reach`` to one of its queries.

    Blocks that lie beyond every sample's extent are left out.

    Example:
        >>> spans(8, 4, None, None, reach=1.5, block=4)  # doctest: +NORMALIZE_WHITESPACE
        [Span(queries=slice(0, 4, None), keys=slice(0, 3, None)),
         Span(queries=slice(4, 8, None), keys=slice(1, 4, None))]
    """
    samples = sorted(set(zip(query_extents or [queries], key_extents or [keys], strict=True)))
    found = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        reached = [_reached(start, min(stop, q), q, k, reach) for q, k in samples if start < q]
        if reached:
            first, last = min(lo for lo, _ in reached), max(hi for _, hi in reached)
            found.append(Span(slice(start, stop), slice(first, last + 1)))
    return found


def _reached(start: int, stop: int, queries: int, keys: int, reach: float) -> tuple[int, int]:
    first_centre = (start + 0.5) * keys / queries - 0.5
    last_centre = (stop - 0.5) * keys / queries - 0.5
    return max(0, math.floor(first_centre - reach) + 1), min(keys - 1, math.ceil(last_centre + reach) - 1)


def distances(
    queries: int, keys: int, query_extent: Tensor | None, key_extent: Tensor | None, like: Tensor, dtype: torch.dtype
) -> Tensor:
    """|key - centre of the query| along one axis, (B or 1, queries, keys), in key pixels.

    ``query_extent`` and ``key_extent`` are (B,) along this axis. Whatever lies beyond an extent is infinitely far away,
    so it has no weight and needs no mask of its own.
    """
    query_index = torch.arange(queries, device=like.device)[:, None]
    key_index = torch.arange(keys, device=like.device)
    query_valid = torch.full((1,), queries, device=like.device) if query_extent is None else query_extent
    key_valid = torch.full((1,), keys, device=like.device) if key_extent is None else key_extent
    query_valid, key_valid = query_valid[:, None, None], key_valid[:, None, None]
    # |key - ((query + 0.5) * hk / hq - 0.5)| over a common denominator: exact until the one rounding at the end.
    numerator = query_valid * (2 * key_index + 1) - (2 * query_index + 1) * key_valid
    distance = numerator.abs().to(dtype) / (2 * query_valid)
    return distance.masked_fill((query_index >= query_valid) | (key_index >= key_valid), math.inf)

"""NATTEN on keys upsampled to the query grid: the nearest that it has to attention across scales.

It is another function: its window keeps its size at the border by being shifted, has no soft edge, and weighs every
upsampled copy of a key. So it is checked against its own definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.peers.attention import Attend, Case

NAME = "NATTEN on upsampled keys"


def fits(case: Case) -> bool:
    return case.queries % case.keys == 0 and kernel(case) <= case.queries


def kernel(case: Case) -> int:
    """The side of the window on the query grid, odd."""
    return 2 * round(case.radius * case.queries / case.keys) + 1


def make(case: Case, dtype: torch.dtype) -> Attend:
    from natten.functional import na2d

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = (_upsampled(case, x) for x in (key, value))
        return na2d(query, k, v, kernel_size=kernel(case))

    return attend


def definition(case: Case) -> Attend:
    """What it should give, in float64: dense logits of each sample, those outside the shifted window left out."""
    size = kernel(case)
    place = torch.arange(case.queries)
    start = (place - size // 2).clamp(0, case.queries - size)
    inside = (place >= start[:, None]) & (place < start[:, None] + size)
    window = (inside[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = (_upsampled(case, x) for x in (key, value))
        q, k, v = (x.double().flatten(1, 2).transpose(1, 2) for x in (query, k, v))
        logits = (q @ k.mT * case.channels**-0.5).masked_fill(~window.to(q.device), -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).unflatten(1, (case.queries, case.queries))

    return attend


def _upsampled(case: Case, x: Tensor) -> Tensor:
    times = case.queries // case.keys
    return x.repeat_interleave(times, 1).repeat_interleave(times, 2)

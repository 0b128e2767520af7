"""The second stage of a reduction: the parts that programs left, summed in one order, so that no atomics are needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from hamlet.kernels.launch import Configuration, Launch
from hamlet.kernels.variants import Variant

BLOCK = 256


@triton.jit(do_not_specialize=["segments"])
def sum_parts(parts, total, count, segments, BLOCK: tl.constexpr):
    """total[n] = the sum of parts[s, n] over ``segments``."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_known = index < count
    found = tl.zeros((BLOCK,), tl.float32)
    for _ in range(segments):
        found += tl.load(parts + index, is_known, 0)
        parts += count
    tl.store(total + index, found.to(total.dtype.element_ty), is_known)


def parts_of(gradient: Tensor, segments: int) -> Tensor:
    """Where ``segments`` programs each leave their part of ``gradient``: in itself where there is but one."""
    if segments == 1:
        return gradient
    return torch.empty(segments, *gradient.shape, dtype=torch.float32, device=gradient.device)


def sum_of(parts: Tensor, gradient: Tensor) -> list[Launch]:
    """What is left to do when all parts are there."""
    if parts is gradient:
        return []
    count = gradient.numel()
    arguments = {"parts": parts, "total": gradient, "count": count, "segments": parts.shape[0]}
    choice = Configuration((("BLOCK", BLOCK),), BLOCK // 64)
    return [Launch(sum_parts, lambda values: triton.cdiv(count, BLOCK), arguments, (choice,))]


def variants() -> Iterator[Variant]:
    for dtype in (torch.float32, torch.bfloat16):
        gradient = torch.empty(8, 256, 1, 3, 3, dtype=dtype, device="meta")
        (launch,) = sum_of(parts_of(gradient, 4), gradient)
        yield launch.variant(f"sum of parts {'fp32' if dtype == torch.float32 else 'bf16'}")

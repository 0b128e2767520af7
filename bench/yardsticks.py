"""What the machine can do at best, in seconds of a case: measured in every round, beside the contenders."""

from __future__ import annotations

import functools

import torch

from bench.clock import DEVICE, Measure, seconds
from bench.comparison import COPY, PEAK
from hamlet.ops.native.library import module

ITEMS = 4
"""Of the native measurement for each thread, about a millisecond each."""
TRIES = 5
"""Of which the best is the peak: a disturbance only ever makes it look lower."""
SIDE = 512 if DEVICE.type == "cpu" else 8192
"""Of the square matrices whose product is timed."""


def limits(operations: float, bytes: float, dtype: torch.dtype = torch.float32) -> dict[str, Measure]:
    """The time of so many operations at the machine's peak, and of copying until so many bytes have been moved."""
    return {PEAK: peak(operations, dtype), COPY: copy(bytes)}


def peak(operations: float, dtype: torch.dtype = torch.float32) -> Measure:
    """On as many threads as torch uses: multiply-adds in float32, products of matrices where those are faster."""
    by_product = DEVICE.type == "cuda" or module is None or (dtype != torch.float32 and _product_is_faster(dtype))
    at_speed = _product if by_product else _multiply_adds

    def measure() -> float:
        return min(operations / done * took for done, took in (at_speed(dtype) for _ in range(TRIES)))

    return measure


@functools.cache
def _product_is_faster(dtype: torch.dtype) -> bool:
    """Whether matrix units make this dtype's product faster than float32 multiply-adds."""
    _product(dtype)
    (product, took), (adds, spent) = _product(dtype), _multiply_adds(dtype)
    return product / took > adds / spent


def _multiply_adds(dtype: torch.dtype) -> tuple[float, float]:
    threads, done = torch.get_num_threads(), []
    took = seconds(lambda: done.append(module.multiply_adds(threads, ITEMS * threads)))
    return done[0], took


def _product(dtype: torch.dtype) -> tuple[float, float]:
    square = _square(dtype)
    return 2.0 * SIDE**3, seconds(lambda: torch.mm(square, square))


@functools.cache
def _square(dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(SIDE, SIDE, dtype=dtype, device=DEVICE)


def copy(bytes: float) -> Measure:
    """The time of reading half of the bytes and writing them elsewhere."""
    source = torch.ones(max(1, round(bytes / 8)), device=DEVICE)
    out = torch.empty_like(source)
    return lambda: seconds(lambda: out.copy_(source))

"""What the machine can do at best, in seconds of a case: measured in every round, beside the contenders."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from bench.harness import Measure, seconds
from hamlet.ops.native.library import module

PEAK = "peak of multiply-adds"
COPY = "copy of the input"
ITEMS = 16
"""Of the native measurement for each thread, about a millisecond each."""
SIDE = 1024
"""Of the square matrices whose product stands in for it where the native kernels are not installed."""


def peak(operations: float) -> Measure:
    """The time of so many operations at the speed of float32 multiply-adds, on as many threads as torch uses."""

    def measure() -> float:
        threads = torch.get_num_threads()
        begin = time.perf_counter()
        done = module.multiply_adds(threads, ITEMS * threads) if module else _product()
        return operations / done * (time.perf_counter() - begin)

    return measure


def _product() -> float:
    square = torch.ones(SIDE, SIDE)
    torch.mm(square, square)
    return 2.0 * SIDE**3


def copy(tensor: Tensor) -> Measure:
    """The time of reading ``tensor`` once and writing it once."""
    out = torch.empty_like(tensor)
    return lambda: seconds(lambda: out.copy_(tensor))

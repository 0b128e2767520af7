"""How much memory a run takes at its peak, and a bound on it that keeps the machine out of danger."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.clock import DEVICE

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
SHARE = 3
"""A contender may have one part in so many of the machine's memory."""


def peak(run: Callable[[], Any]) -> int | None:
    """Bytes that one run adds at its peak to what the process had, results included; None where nobody can tell.

    On a GPU by the allocator's own count. On Linux by the kernel's count of resident pages, after what the C library
    keeps of freed memory has gone back to the system: so it counts what any library takes, not PyTorch's tensors alone.
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated()) - before
    if not sys.platform.startswith("linux"):
        run()
        return None
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text(_FORGET_PEAK)
    before = _read("VmRSS")
    run()
    return max(0, _read("VmHWM") - before)


def _read(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


@contextmanager
def limited(most: int | None = None) -> Iterator[None]:
    """Within it, allocating more than ``most`` bytes (a share of the machine's memory) beyond what there is fails.

    The error is the contender's own, as on a smaller machine. On a GPU the device's memory is the limit.
    """
    if DEVICE.type == "cuda" or not sys.platform.startswith("linux"):
        yield
        return
    import os
    import resource

    most = most or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = _read("VmSize") + most
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

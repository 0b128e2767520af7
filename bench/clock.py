"""Time on the device that is measured: the processor's clock, or a GPU's own events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Measure = Callable[[], float]
"""What returns the seconds that something took."""
CYCLES = 2_000_000
"""Of a GPU that spins for about a millisecond, longer than the processor takes to launch a graph."""


class Moment:
    """A moment in the GPU's stream; the difference of two is in seconds.

    Nothing waits when it is noted, only when two are compared: work that was queued before the first hides how long the
    processor takes to launch what lies between them (:func:`hide_launches`).
    """

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: Moment) -> float:
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


now: Callable[[], Any] = Moment if DEVICE.type == "cuda" else time.perf_counter
"""What two moments' difference in seconds is made of; pytest-benchmark's timer too."""


def hide_launches() -> None:
    """Keep the GPU busy until what is timed next has been launched, so that its time is the GPU's alone."""
    if DEVICE.type == "cuda":
        torch.cuda._sleep(CYCLES)


def seconds(run: Callable[[], Any]) -> float:
    hide_launches()
    begin = now()
    run()
    return float(now() - begin)

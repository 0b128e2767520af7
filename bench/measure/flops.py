"""Floating-point operations as PyTorch counts them, by the operators' own formulas too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def count(run: Callable[[], Any]) -> float:
    """Of products, convolutions and attention; element-wise work is not counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())

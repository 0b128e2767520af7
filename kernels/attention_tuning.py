"""Looking for a faster way to run a tile than the table's, on the GPU that is there."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import triton

from hamlet.kernels.attention_table import Configuration

KEY = ("query_grids", "key_grids", "max_radius", "softness", "batch", "heads", "CHANNELS", "VALUE_CHANNELS", "ALIGNED")
"""Arguments for whose values one search each is made."""


@functools.cache
def tuned(kernel: Any, shape: Configuration) -> Any:
    """``kernel``, its tile that of ``shape``, with the fastest step, warps and stages; what was found stays on disk."""
    found = [launch_options(kernel, own) for own in candidates(shape)]
    configurations = [
        triton.Config(options, num_warps=options.pop("num_warps"), num_stages=options.pop("num_stages"))
        for options in found
    ]
    return triton.autotune(configurations, key=list(KEY), cache_results=True)(kernel)


def candidates(shape: Configuration) -> list[Configuration]:
    """The table's configuration first. The tile stays: the two passes of the backward agree on it."""
    others = [
        *(replace(shape, step=step) for step in (16, 32, 64)),
        *(replace(shape, warps=warps) for warps in (2, 4, 8)),
        *(replace(shape, stages=stages) for stages in (1, 2, 3)),
    ]
    return list(dict.fromkeys([shape, *others]))


def launch_options(kernel: Any, shape: Configuration) -> dict[str, int]:
    """What of ``shape`` a launch of ``kernel`` takes beside the tile."""
    step = "QUERIES" if "QUERIES" in kernel.arg_names else "KEYS"
    return {step: shape.step, "num_warps": shape.warps, "num_stages": shape.stages}

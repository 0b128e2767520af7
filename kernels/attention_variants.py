"""Every configuration that the attention's table can choose, as a launch would compile it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from hamlet.kernels.arguments import Grids, Maps, Pairs
from hamlet.kernels.attention_backward import attention_backward_keys, attention_backward_queries
from hamlet.kernels.attention_forward import attention_forward
from hamlet.kernels.attention_table import FINE, block, configuration
from hamlet.kernels.variants import Variant

KERNELS = {
    "forward": attention_forward,
    "queries": attention_backward_queries,
    "keys": attention_backward_keys,
}
OF_LEVELS = ("query", "key", "value", "out", "grad_out", "d_query", "d_key", "d_value")
OF_PAIRS = ("radius", "gate")
NUMBERS = {"softness": "fp32", "scale": "fp32", "batch": "i32", "heads": "i32"}
ALL_LEVELS = 4
"""Levels of the pyramid that is compiled: the more, the more is looked up."""


def variants() -> Iterator[Variant]:
    """A single attention on coarse and on fine keys for every size of the channels, and pyramids of the usual sizes."""
    for kernel in KERNELS:
        for channels in (32, 64, 128, 256):
            for dtype in (tl.bfloat16, tl.float32):
                coarse, fine = (configuration(kernel, dtype.itemsize, channels, ratio) for ratio in (1, 2 * FINE))
                yield variant(kernel, dtype, channels, 1, 1)
                if fine != coarse:
                    yield variant(kernel, dtype, channels, 2 * FINE, 1)
        for channels in (32, 64):
            yield variant(kernel, tl.bfloat16, channels, 1, ALL_LEVELS)


def variant(kernel: str, dtype: Any, channels: int, ratio: float, levels: int) -> Variant:
    chosen = configuration(kernel, dtype.itemsize, channels, ratio)
    function = KERNELS[kernel]
    constants = {
        **{"DTYPE": dtype, "CHANNELS": channels, "VALUE_CHANNELS": channels},
        **{"BLOCK_D": block(channels), "BLOCK_V": block(channels), "ALIGNED": True, "PRECISION": "ieee"},
        **{"TILE_Y": chosen.tile_y, "TILE_X": chosen.tile_x},
        "QUERIES" if kernel == "keys" else "KEYS": chosen.step,
    }
    if kernel == "keys":
        queries = configuration("queries", dtype.itemsize, channels, 1 / ratio)
        constants |= {"QUERY_TILE_Y": queries.tile_y, "QUERY_TILE_X": queries.tile_x}
    signature = {name: "constexpr" if name in constants else _kind(name, levels) for name in function.arg_names}
    name = f"attention {kernel} {dtype} {channels} channels"
    if levels > 1:
        name += f" {levels} levels"
    elif ratio > FINE:
        name += " fine"
    return Variant(name, function, signature, constants, {}, chosen.warps, chosen.stages, matrix=dtype != tl.float32)


def _kind(name: str, levels: int) -> Any:
    """The type of an argument, for a pyramid with a pair for any two levels."""
    of_level, of_pair = ("i64",) * levels, ("i64",) * levels**2
    if name in NUMBERS:
        return NUMBERS[name]
    if name.endswith("grids"):
        return Grids(of_level, of_level)
    if name.endswith("extents"):
        return of_level
    if name == "pairs":
        return Pairs(of_level, of_level, of_pair)
    if name == "max_radius":
        return ("fp32",) * levels**2
    if name in OF_LEVELS or name in OF_PAIRS:
        return Maps(*[of_level if name in OF_LEVELS else of_pair] * len(Maps._fields))
    return of_pair

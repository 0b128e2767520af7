"""A layer of attention as the Triton kernels take it: levels of queries and of keys, and the pairs between them.

A single attention is a layer of one pair. This module is imported with the first call, as it imports Triton.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hamlet.kernels.arguments import Grids, Maps, Pairs, packed
from hamlet.kernels.attention_backward import attention_backward_keys, attention_backward_queries
from hamlet.kernels.attention_forward import attention_forward
from hamlet.kernels.attention_table import Configuration, block, configuration
from hamlet.kernels.attention_tuning import launch_options, tuned
from hamlet.ops.native.library import channels_together, extents
from hamlet.ops.reference.pyramid import Pair
from hamlet.ops.triton.library import device_of

LARGEST_REACH = 1e9
"""A longer radius is the whole grid too, and what nothing may reach lies further away still."""
SHARPEST = 1e-30
"""A smaller softness has no reciprocal in float32, and is none already."""
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class Layer:
    """The tensors of one call, as the kernels take them: channels together, extents int64, radii and gates float32."""

    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    query_extents: Sequence[Tensor | None]
    key_extents: Sequence[Tensor | None]
    pairs: Sequence[Pair]
    softness: float
    scale: float

    @classmethod
    def of(
        cls,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        query_extents: Sequence[Tensor | None],
        key_extents: Sequence[Tensor | None],
        pairs: Iterable[Pair],
        softness: float,
        scale: float,
    ) -> Layer:
        """The layer of these tensors, those copied that the kernels would not take as they are."""
        return cls(
            list(map(channels_together, queries)),
            list(map(channels_together, keys)),
            list(map(channels_together, values)),
            list(map(extents, query_extents)),
            list(map(extents, key_extents)),
            [pair._replace(radius=_single(pair.radius), gate=_single(pair.gate)) for pair in pairs],
            softness,
            scale,
        )

    def of_queries(self) -> list[Tensor]:
        """A new float32 tensor (B, H, W, N) for every pair."""
        grids = [self.queries[pair.i] for pair in self.pairs]
        return [grid.new_empty(grid.shape[:4], dtype=torch.float32) for grid in grids]


def forward(layer: Layer) -> tuple[list[Tensor], list[Tensor]]:
    """The output of each level and the log-sum-exp of each pair."""
    outs = [query.new_empty((*query.shape[:4], layer.values[0].shape[4])) for query in layer.queries]
    lses = layer.of_queries()
    shape = _configuration("forward", layer)
    order, sequence, pairs = _by_queries(layer, shape)
    channels = [*layer.queries, *layer.keys, *layer.values, *outs]
    _launch(
        attention_forward,
        shape,
        _in(order, layer.queries),
        _maps(_in(order, layer.queries)),
        *map(_maps, (layer.keys, layer.values, _in(order, outs))),
        *_windows(layer, sequence),
        _addresses(_in(sequence, lses)),
        *_grids(_in(order, layer.queries), _in(order, layer.query_extents)),
        *_grids(layer.keys, layer.key_extents),
        pairs,
        *_numbers(layer, sequence),
        **_constants(layer, channels),
    )
    return outs, lses


def backward(
    layer: Layer, grad_outs: Sequence[Tensor], lses: Sequence[Tensor], grad_lses: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor | None], list[Tensor | None]]:
    """Gradients of queries, keys and values by level, and of radius and gate by pair."""
    levels = (layer.queries, layer.keys, layer.values)
    d_queries, d_keys, d_values = ([x.new_empty(x.shape) for x in level] for level in levels)
    d_radii, d_gates = (
        [None if like is None else own for own, like in zip(layer.of_queries(), likes, strict=True)]
        for likes in ([pair.radius for pair in layer.pairs], [pair.gate for pair in layer.pairs])
    )
    deltas = layer.of_queries()
    grad_outs = list(map(channels_together, grad_outs))
    lses = [lse.contiguous() for lse in lses]
    grad_lses = [None if grad is None else grad.contiguous() for grad in grad_lses]
    shape = _configuration("queries", layer)
    largest = [_of_tiles(layer.queries[pair.i], shape) for pair in layer.pairs]
    constants = _constants(layer, itertools.chain(*levels, grad_outs, d_queries, d_keys, d_values))

    order, sequence, pairs = _by_queries(layer, shape)
    _launch(
        attention_backward_queries,
        shape,
        _in(order, layer.queries),
        _maps(_in(order, layer.queries)),
        *map(_maps, (layer.keys, layer.values, _in(order, grad_outs), _in(order, d_queries))),
        *_windows(layer, sequence),
        *(_addresses(_in(sequence, own)) for own in (lses, grad_lses, deltas, d_radii, d_gates, largest)),
        *_grids(_in(order, layer.queries), _in(order, layer.query_extents)),
        *_grids(layer.keys, layer.key_extents),
        pairs,
        *_numbers(layer, sequence),
        **constants,
    )
    query_shape, shape = shape, _configuration("keys", layer)
    order, sequence, pairs = _by_keys(layer, shape)
    _launch(
        attention_backward_keys,
        shape,
        _in(order, layer.keys),
        _maps(layer.queries),
        *(_maps(_in(order, level)) for level in (layer.keys, layer.values)),
        _maps(grad_outs),
        *(_maps(_in(order, level)) for level in (d_keys, d_values)),
        *_windows(layer, sequence),
        *(_addresses(_in(sequence, own)) for own in (lses, deltas, largest)),
        *_grids(layer.queries, layer.query_extents),
        *_grids(_in(order, layer.keys), _in(order, layer.key_extents)),
        pairs,
        *_numbers(layer, sequence),
        **constants,
        QUERY_TILE_Y=query_shape.tile_y,
        QUERY_TILE_X=query_shape.tile_x,
    )
    return d_queries, d_keys, d_values, d_radii, d_gates


def _launch(kernel: Any, shape: Configuration, levels: Sequence[Tensor], *arguments: Any, **constants: Any) -> None:
    """Start a program for every head of every tile of ``levels``."""
    batch, _, _, heads, _ = levels[0].shape
    tiles = sum(triton.cdiv(x.shape[1], shape.tile_y) * triton.cdiv(x.shape[2], shape.tile_x) for x in levels)
    programs = tiles * batch * heads
    if not programs:
        return
    constants |= {"TILE_Y": shape.tile_y, "TILE_X": shape.tile_x}
    with device_of(levels[0]):
        if os.environ.get("HAMLET_AUTOTUNE") == "1":
            tuned(kernel, shape)[(programs,)](*arguments, batch, heads, **constants)
        else:
            kernel[(programs,)](*arguments, batch, heads, **constants, **launch_options(kernel, shape))


def _single(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32)


def _configuration(kernel: str, layer: Layer) -> Configuration:
    query, key, value = layer.queries[0], layer.keys[0], layer.values[0]
    # A pyramid has pairs of every ratio, and its windows grow with it: their shape is that of equal grids.
    ratio = 1.0
    if len(layer.pairs) == 1:
        ratio = (math.prod(key.shape[1:3]) / max(math.prod(query.shape[1:3]), 1)) ** 0.5
        if kernel == "keys":
            ratio = 1 / max(ratio, 1e-9)
    return configuration(kernel, query.dtype.itemsize, max(query.shape[4], value.shape[4]), ratio)


def _constants(layer: Layer, with_channels: Iterable[Tensor]) -> dict[str, Any]:
    dtype, channels, value_channels = layer.queries[0].dtype, layer.queries[0].shape[4], layer.values[0].shape[4]
    return {
        "DTYPE": TYPES[dtype],
        "CHANNELS": channels,
        "VALUE_CHANNELS": value_channels,
        "BLOCK_D": block(channels),
        "BLOCK_V": block(value_channels),
        "ALIGNED": all(map(_aligned, with_channels)),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
    }


def _aligned(tensor: Tensor) -> bool:
    """Whether every pixel's channels begin at a multiple of 16 bytes."""
    steps = (tensor.element_size() * stride for stride in _strides(tensor))
    return not any(number % 16 for number in (tensor.data_ptr(), *steps))


def _strides(tensor: Tensor) -> list[int]:
    """Strides of all but the channels; that of a dimension of size 1 may be anything, and is never used."""
    return [stride if size > 1 else 0 for size, stride in zip(tensor.shape[:4], tensor.stride()[:4], strict=True)]


def _maps(tensors: Sequence[Tensor | None]) -> Maps:
    numbers = [[0] * 5 if x is None else [x.data_ptr(), *_strides(x)] for x in tensors]
    return Maps(*(packed(column) for column in zip(*numbers, strict=True)))


def _addresses(tensors: Iterable[Tensor | None]) -> tuple[int, ...]:
    return packed(0 if x is None else x.data_ptr() for x in tensors)


def _grids(levels: Sequence[Tensor], extents: Sequence[Tensor | None]) -> tuple[Grids, tuple[int, ...]]:
    return Grids(packed(x.shape[1] for x in levels), packed(x.shape[2] for x in levels)), _addresses(extents)


def _windows(layer: Layer, sequence: Iterable[int]) -> tuple[Maps, Maps]:
    pairs = _in(sequence, layer.pairs)
    return _maps([pair.radius for pair in pairs]), _maps([pair.gate for pair in pairs])


def _numbers(layer: Layer, sequence: Iterable[int]) -> tuple[tuple[float, ...], float, float]:
    bounds = tuple(min(pair.max_radius, LARGEST_REACH) for pair in _in(sequence, layer.pairs))
    return bounds, max(layer.softness, SHARPEST), layer.scale


def _in(order: Iterable[int], items: Sequence[Any]) -> list[Any]:
    return [items[index] for index in order]


def _of_tiles(grid: Tensor, shape: Configuration) -> Tensor:
    """A new float32 tensor with one number for every head of every tile."""
    batch, height, width, heads, _ = grid.shape
    return grid.new_empty(
        (batch, triton.cdiv(height, shape.tile_y) * triton.cdiv(width, shape.tile_x), heads), dtype=torch.float32
    )


def _by_queries(layer: Layer, shape: Configuration) -> tuple[list[int], list[int], Pairs]:
    """The levels of queries, longest tiles first, their pairs in that order, and the table of both."""
    sides = [(pair.i, pair.j) for pair in layer.pairs]
    work = [
        _keys_reached(layer.queries[pair.i], layer.keys[pair.j], shape, pair.max_radius + layer.softness)
        for pair in layer.pairs
    ]
    return _schedule(sides, work, len(layer.queries))


def _by_keys(layer: Layer, shape: Configuration) -> tuple[list[int], list[int], Pairs]:
    sides = [(pair.j, pair.i) for pair in layer.pairs]
    work = []
    for pair in layer.pairs:
        query, key = layer.queries[pair.i], layer.keys[pair.j]
        reach = (pair.max_radius + layer.softness) * query.shape[1] / max(key.shape[1], 1)
        work.append(_keys_reached(key, query, shape, reach))
    return _schedule(sides, work, len(layer.keys))


def _keys_reached(own: Tensor, other: Tensor, shape: Configuration, reach: float) -> float:
    """About how many pixels of ``other`` a tile of ``own`` meets, its reach being in pixels of ``other``."""
    tile = (shape.tile_y, shape.tile_x)
    sides = [
        min(tile[axis] * other.shape[1 + axis] / max(own.shape[1 + axis], 1) + 2 * reach, other.shape[1 + axis])
        for axis in (0, 1)
    ]
    return sides[0] * sides[1]


def _schedule(
    sides: Sequence[tuple[int, int]], work: Sequence[float], levels: int
) -> tuple[list[int], list[int], Pairs]:
    of_level = [[index for index, (own, _) in enumerate(sides) if own == level] for level in range(levels)]
    order = sorted(range(levels), key=lambda level: -sum(work[index] for index in of_level[level]))
    sequence = [index for level in order for index in of_level[level]]
    ends = list(itertools.accumulate(len(of_level[level]) for level in order))
    first = [0, *ends[:-1]]
    return order, sequence, Pairs(packed(first), packed(ends), packed(sides[index][1] for index in sequence))

"""All pairs of a pyramid's levels: one call of HAMLET's, beside its own and its peers' sum over pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench.clock import DEVICE
from bench.comparison import Comparison
from bench.harness import TOLERANCE, Effort, compare
from bench.measure.attention import BACKWARD, FORWARD, hamlet
from bench.measure.backends import asked
from bench.peers.attention import EAGER, FOR_THE_COMPILER, Attend, Case, exact, flex
from bench.peers.compiler import compiled
from bench.runs import Run, bytes_moved, forward, forward_backward
from bench.yardsticks import limits
from hamlet.ops import available_backends, pyramid_attention

IMAGE = 224
WINDOW = 48.0
"""Half-width of the windows in pixels of an image of 224 x 224, as the model has it."""
FLEX = "compiled FlexAttention"
PEERS = (*EAGER, *FOR_THE_COMPILER, FLEX)

Grid = list[list[Case]]


def cases(sides: Iterable[int], batch: int, heads: int, channels: int) -> Grid:
    """Queries of each level (rows) on keys of each (columns); every window covers the same part of the image."""
    sides = list(sides)
    radius = {side: max(1.0, WINDOW * side / IMAGE) for side in sides}
    return [[Case(query, key, radius[key], batch, heads, channels) for key in sides] for query in sides]


def sum_of_pairs(attend: list[list[Attend]]) -> Callable[..., Tensor]:
    """Every level's queries on every level's keys, pair by pair; the levels of the result flattened into one tensor."""

    def run(*tensors: Tensor) -> Tensor:
        levels = len(attend)
        queries, keys, values = tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]
        outs = [sum(attend[i][j](query, keys[j], values[j]) for j in range(levels)) for i, query in enumerate(queries)]
        return torch.cat([out.flatten() for out in outs])

    return run


def of_every_pair(grid: Grid, make: Callable[[Case], Attend]) -> Callable[..., Tensor]:
    return sum_of_pairs([[make(case) for case in row] for row in grid])


def peer(grid: Grid, name: str) -> Callable[..., Tensor]:
    """What the compiler takes is compiled as a whole; FlexAttention takes one pair."""
    make = {**EAGER, **FOR_THE_COMPILER, FLEX: flex}[name]
    layer = of_every_pair(grid, lambda case: make(case, torch.float32))
    return compiled(layer) if name in FOR_THE_COMPILER else layer


def measure(
    benchmark: Any,
    group: str,
    grid: Grid,
    effort: Effort,
    *,
    backward: bool = False,
    peers: Iterable[str] = PEERS,
    at: Mapping[str, float] = MappingProxyType({}),
) -> Comparison:
    first, levels = grid[0][0], len(grid)
    sides = [row[0].queries for row in grid]
    shapes = [(first.batch, side, side, first.heads, first.channels) for side in sides]
    tensors = [torch.randn(shape, device=DEVICE) for _ in range(3) for shape in shapes]
    incoming = torch.randn(sum(tensor.numel() for tensor in tensors[:levels]), device=DEVICE)
    radius = [[case.radius for case in row] for row in grid]

    def run(function: Callable[..., Tensor], given: list[Tensor] = tensors) -> Run:
        return forward_backward(function, given, incoming) if backward else forward(function, given)

    def split(given: Iterable[Tensor]) -> tuple[list[Tensor], ...]:
        given = list(given)
        return given[:levels], given[levels : 2 * levels], given[2 * levels :]

    def ours(backend: str | None) -> Callable[..., Tensor]:
        def layer(*given: Tensor) -> Tensor:
            outs = pyramid_attention(*split(given), radius=radius, max_radius=radius, backend=backend)
            return torch.cat([out.flatten() for out in outs])

        return layer

    names = available_backends("pyramid_attention", *split(tensors), radius=radius, max_radius=radius)
    contenders = {name: lambda backend=backend: run(ours(backend)) for name, backend in asked(names).items()}
    contenders["HAMLET, pair by pair"] = lambda: run(of_every_pair(grid, hamlet))
    contenders |= {name: lambda name=name: run(peer(grid, name)) for name in peers}
    pairs = sum(case.pairs() for row in grid for case in row)
    comparison = Comparison(
        f"pyramid {group}",
        f"levels {' '.join(map(str, sides))}, all {levels**2} pairs, B{first.batch} N{first.heads} D{first.channels}",
        operations=2.0 * (BACKWARD if backward else FORWARD) * pairs * first.channels,
        bytes=bytes_moved(tensors, incoming.nbytes, backward),
        at=dict(at),
    )
    return compare(
        benchmark,
        comparison,
        contenders,
        lambda: run(of_every_pair(grid, exact), [tensor.double() for tensor in tensors])(),
        effort=effort,
        tolerance=TOLERANCE[torch.float32],
        yardsticks=limits(comparison.operations, comparison.bytes),
    )

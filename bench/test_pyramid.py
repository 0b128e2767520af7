"""All pairs of three pyramid levels in one call, beside the sum of one call a pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.harness import TOLERANCE, Comparison, compare, forward, forward_backward
from bench.peers.attention import PEERS, STRONGEST, Case
from bench.yardsticks import PEAK, peak
from hamlet.ops import available_backends, cross_scale_attention, pyramid_attention

FULL = {"sides": (28, 14, 7), "batch": 8, "heads": 8, "channels": 32}
SMALL = {"sides": (8, 4, 2), "batch": 2, "heads": 2, "channels": 16}
IMAGE = 224
WINDOW = 48.0
"""Half-width of the windows in pixels of an image of 224 x 224, as the model has it."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sum_of_pairs(attend: list[list[Attend]]) -> Callable[..., Tensor]:
    """Every level's queries on every level's keys, pair by pair; the levels of the result flattened into one tensor."""

    def run(*tensors: Tensor) -> Tensor:
        levels = len(attend)
        queries, keys, values = tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]
        outs = [sum(attend[i][j](query, keys[j], values[j]) for j in range(levels)) for i, query in enumerate(queries)]
        return torch.cat([out.flatten() for out in outs])

    return run


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_pyramid(backward, full, shown, benchmark):
    shape = FULL if full else SMALL
    sides, rest = shape["sides"], (shape["batch"], shape["heads"], shape["channels"])
    radius = [max(1.0, WINDOW * side / IMAGE) for side in sides]
    cases = [[Case(query, key, radius[j], *rest) for j, key in enumerate(sides)] for query in sides]
    tensors = [torch.randn(rest[0], side, side, *rest[1:]) for _ in range(3) for side in sides]
    incoming = torch.randn(sum(tensor.numel() for tensor in tensors[:3]))

    def runner(function, inputs=tensors):
        return forward_backward(function, inputs, incoming) if backward else forward(function, inputs)

    def ours(backend):
        def run(*given):
            outs = pyramid_attention(
                given[:3], given[3:6], given[6:], radius=[radius] * 3, max_radius=[radius] * 3, backend=backend
            )
            return torch.cat([out.flatten() for out in outs])

        return lambda: runner(run)

    def one_by_one(query, key, value, case):
        return cross_scale_attention(query, key, value, radius=case.radius, max_radius=case.radius)

    def peer(make, dtype=torch.float32):
        return sum_of_pairs([[make(case, dtype) for case in row] for row in cases])

    settings = {"radius": [radius] * 3, "max_radius": [radius] * 3}
    backends = available_backends("pyramid_attention", tensors[:3], tensors[3:6], tensors[6:], **settings)
    contenders = {f"HAMLET ({name})": ours(name) for name in backends}
    contenders["HAMLET, pair by pair"] = lambda: runner(
        sum_of_pairs([[lambda *given, case=case: one_by_one(*given, case) for case in row] for row in cases])
    )
    contenders |= {f"{name}, pair by pair": lambda name=name: runner(peer(PEERS[name])) for name in STRONGEST}
    pairs = sum(case.pairs() for row in cases for case in row)
    comparison = Comparison(
        f"pyramid {'forward + backward' if backward else 'forward'}",
        f"{' '.join(map(str, sides))}, all {len(sides) ** 2} pairs, B{rest[0]}",
        operations=2.0 * (7 if backward else 2) * pairs * rest[2],
        bytes=4.0 * (sum(tensor.numel() for tensor in tensors) + incoming.numel()) * (3 if backward else 1),
    )
    compare(
        benchmark,
        comparison,
        contenders,
        lambda: runner(peer(PEERS["dense logits + mask"], torch.float64), [tensor.double() for tensor in tensors])(),
        rounds=5 if full else 1,
        tolerance=TOLERANCE[torch.float32],
        yardsticks={PEAK: peak(comparison.operations)},
    )
    shown.append(comparison)
    assert not [outcome for outcome in comparison.outcomes if outcome.problem]

"""Cross-scale attention on the grids of a feature pyramid, forward, and forward with backward."""

from __future__ import annotations

import pytest
import torch

from bench.harness import Comparison, compare, forward, forward_backward
from bench.peers.attention import PEERS, Case
from hamlet.ops import available_backends, cross_scale_attention

FULL = [Case(56, 28, 3.0), Case(28, 56, 6.0), Case(28, 14, 3.0), Case(56, 56, 3.0)]
SMALL = [Case(14, 7, 1.5, 2, 2, 16), Case(9, 18, 4.0, 2, 2, 16), Case(14, 7, 3.0, 2, 2, 16), Case(8, 8, 2.0, 2, 2, 16)]
GATHER_LIMIT = 4e9
"""Bytes of gathered windows beyond which the uncompiled gather is not tried."""


def contenders(case: Case, runner):
    def ours(backend=None):
        return lambda: runner(
            lambda *tensors: cross_scale_attention(
                *tensors, radius=case.radius, max_radius=case.radius, softness=case.softness, backend=backend
            )
        )

    def peer(make):
        return lambda: runner(make(case, torch.float32))

    tensors = case.tensors()
    backends = available_backends("cross_scale_attention", *tensors, radius=case.radius, max_radius=case.radius)
    found = {f"HAMLET ({backends[0]})": ours()}
    found |= {f"HAMLET ({name})": ours(name) for name in backends[1:]}
    for name, make in PEERS.items():
        if name == "gather + einsum" and 2 * 4 * case.pairs() * case.channels > GATHER_LIMIT:
            continue
        found[name] = peer(make)
    return found


@pytest.mark.parametrize("index", range(4), ids=["finer queries", "finer keys", "wide", "same grid"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_attention(index, backward, full, shown, benchmark):
    case = (FULL if full else SMALL)[index]
    tensors = case.tensors()
    incoming = torch.randn(case.batch, case.queries, case.queries, case.heads, case.channels)

    def runner(function, inputs=tensors):
        return forward_backward(function, inputs, incoming) if backward else forward(function, inputs)

    def expected():
        exact = [tensor.double() for tensor in tensors]
        return runner(PEERS["dense logits + mask"](case, torch.float64), exact)()

    products = 7 if backward else 2
    moved = sum(tensor.numel() for tensor in (*tensors, incoming)) * 4 * (3 if backward else 1)
    comparison = Comparison(
        f"attention {'forward + backward' if backward else 'forward'}",
        str(case),
        operations=2.0 * products * case.pairs() * case.channels,
        bytes=moved,
    )
    compare(benchmark, comparison, contenders(case, runner), expected, rounds=5 if full else 1, tolerance=1e-5)
    shown.append(comparison)
    assert comparison.outcomes[0].problem is None
    wrong = [outcome for outcome in comparison.outcomes if (outcome.problem or "").startswith("wrong")]
    assert not wrong


def test_call_overhead(full, shown, benchmark):
    """One call on 1 x 7 x 7 x 1 x 8: nothing but overhead."""
    case = Case(7, 7, 1.0, batch=1, heads=1, channels=8)
    tensors = case.tensors()
    exact = [tensor.double() for tensor in tensors]
    comparison = Comparison("call overhead", str(case), operations=0, bytes=0)
    found = contenders(case, lambda function: forward(function, tensors))
    compare(
        benchmark,
        comparison,
        {name: make for name, make in found.items() if not name.startswith("compiled")},
        lambda: forward(PEERS["dense logits + mask"](case, torch.float64), exact)(),
        rounds=200 if full else 2,
        tolerance=1e-5,
    )
    shown.append(comparison)
    assert comparison.outcomes[0].problem is None

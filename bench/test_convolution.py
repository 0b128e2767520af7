"""Per-sample dynamic convolution, depthwise and grouped."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.harness import TOLERANCE, Comparison, compare, forward, forward_backward
from bench.peers.convolution import PEERS, STRONGEST, Case, loop
from bench.yardsticks import COPY, PEAK, copy, peak
from hamlet.ops import available_backends, dynamic_conv2d

FULL = {
    "28x28": Case(8, 256, 28),
    "56x56": Case(8, 64, 56),
    "14x14": Case(32, 512, 14),
    "channels_last": Case(8, 256, 28, channels_last=True),
    "5x5": Case(8, 256, 28, kernel=5),
    "grouped": Case(8, 256, 28, per_group=8),
}
RARER = {"stride 2": Case(8, 256, 28, stride=2), "bfloat16": Case(8, 256, 28, dtype=torch.bfloat16)}


def sized(case, full):
    return case if full else dataclasses.replace(case, batch=2, channels=32, side=9)


def measure(benchmark, group, case, full, peers=tuple(PEERS), backward=False):
    tensors, incoming = case.tensors(), case.images(case.out_side)

    def runner(function, inputs=tensors):
        return forward_backward(function, inputs, incoming) if backward else forward(function, inputs)

    settings = {"dilation": case.dilations, "groups": case.groups, "stride": case.stride}

    def ours(backend=None):
        return lambda: runner(lambda *given: dynamic_conv2d(*given, **settings, backend=backend))

    backends = available_backends("dynamic_conv2d", *tensors, **settings)
    contenders = {f"HAMLET ({backends[0]})": ours()}
    contenders |= {f"HAMLET ({backend})": ours(backend) for backend in backends[1:]}
    contenders |= {peer: lambda make=PEERS[peer]: runner(make(case)) for peer in peers}
    comparison = Comparison(
        f"convolution {group}",
        str(case),
        operations=case.operations() * (3 if backward else 1),
        bytes=(tensors[0].nbytes + incoming.nbytes) * (2 if backward else 1) + tensors[1].nbytes,
    )
    yardsticks = {} if backward else {COPY: copy(tensors[0])}
    if case.per_group > 1:
        yardsticks[PEAK] = peak(comparison.operations)
    compare(
        benchmark,
        comparison,
        contenders,
        lambda: runner(loop(case), [tensor.double() for tensor in tensors])(),
        rounds=15 if full else 1,
        tolerance=TOLERANCE[case.dtype],
        yardsticks=yardsticks,
    )
    assert not [outcome for outcome in comparison.outcomes if outcome.problem]
    return comparison


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_convolution(name, backward, full, shown, benchmark):
    group = "forward + backward" if backward else "forward"
    shown.append(measure(benchmark, group, sized(FULL[name], full), full, backward=backward))


@pytest.mark.parametrize("name", FULL)
def test_one_thread(name, full, shown, benchmark, one_thread):
    shown.append(measure(benchmark, "forward, 1 thread", sized(FULL[name], full), full, STRONGEST))


@pytest.mark.parametrize("name", RARER)
def test_rarer_forms(name, full, shown, benchmark):
    shown.append(measure(benchmark, "forward", sized(RARER[name], full), full, STRONGEST))

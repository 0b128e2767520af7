"""Per-sample dynamic convolution, depthwise and grouped."""

from __future__ import annotations

import pytest
import torch

from bench.harness import Comparison, compare, forward, forward_backward
from bench.peers.convolution import PEERS, Case, loop
from hamlet.ops import available_backends, dynamic_conv2d

FULL = {
    "28x28": Case(8, 256, 28),
    "56x56": Case(8, 64, 56),
    "14x14": Case(32, 512, 14),
    "channels_last": Case(8, 256, 28, channels_last=True),
    "5x5": Case(8, 256, 28, kernel=5),
    "grouped": Case(8, 256, 28, per_group=8),
}
SMALL = {
    name: Case(2, 32, 9, case.kernel, case.per_group, channels_last=case.channels_last) for name, case in FULL.items()
}


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_convolution(name, backward, full, shown, benchmark):
    case = (FULL if full else SMALL)[name]
    tensors = case.tensors()
    incoming = torch.randn_like(tensors[0])

    def runner(function, inputs=tensors):
        return forward_backward(function, inputs, incoming) if backward else forward(function, inputs)

    def ours(backend=None):
        return lambda: runner(
            lambda *given: dynamic_conv2d(*given, dilation=case.dilations, groups=case.groups, backend=backend)
        )

    backends = available_backends("dynamic_conv2d", *tensors, dilation=case.dilations, groups=case.groups)
    contenders = {f"HAMLET ({backends[0]})": ours()}
    contenders |= {f"HAMLET ({backend})": ours(backend) for backend in backends[1:]}
    contenders |= {peer: lambda make=make: runner(make(case)) for peer, make in PEERS.items()}
    comparison = Comparison(
        f"convolution {'forward + backward' if backward else 'forward'}",
        str(case),
        operations=case.operations() * (3 if backward else 1),
        bytes=2 * tensors[0].nbytes * (2 if backward else 1) + tensors[1].nbytes,
    )
    compare(
        benchmark,
        comparison,
        contenders,
        lambda: runner(loop(case), [tensor.double() for tensor in tensors])(),
        rounds=5 if full else 1,
        tolerance=1e-5,
    )
    shown.append(comparison)
    assert comparison.outcomes[0].problem is None
    assert not [outcome for outcome in comparison.outcomes if outcome.problem]

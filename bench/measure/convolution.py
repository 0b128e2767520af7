"""A case of dynamic convolution: HAMLET's backends and every peer, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bench.comparison import Comparison
from bench.harness import TOLERANCE, Effort, compare
from bench.measure.backends import asked
from bench.peers.convolution import PEERS, Case, Convolve, blended, loop
from bench.runs import Run, bytes_moved, forward, forward_backward
from bench.yardsticks import limits
from hamlet.ops import available_backends, dynamic_conv2d


def hamlet(case: Case, backend: str | None = None) -> Convolve:
    settings: dict[str, Any] = {"dilation": case.dilations, "groups": case.groups, "stride": case.stride}
    return lambda input, weight: dynamic_conv2d(input, weight, **settings, backend=backend)


def backends(case: Case, tensors: list[Tensor]) -> dict[str, str | None]:
    settings = {"dilation": case.dilations, "groups": case.groups, "stride": case.stride}
    return asked(available_backends("dynamic_conv2d", *tensors, **settings))


def runner(case: Case, tensors: list[Tensor], backward: bool) -> Callable[..., Run]:
    """What makes a run of a function, on these tensors or on others given after it."""
    incoming = case.images(case.out_side)

    def run(function: Callable[..., Tensor], given: list[Tensor] = tensors) -> Run:
        return forward_backward(function, given, incoming) if backward else forward(function, given)

    return run


def measure(
    benchmark: Any,
    group: str,
    case: Case,
    effort: Effort,
    *,
    peers: Iterable[str] = PEERS,
    backward: bool = False,
) -> Comparison:
    tensors = case.tensors()
    run = runner(case, tensors, backward)
    contenders = {name: lambda b=backend: run(hamlet(case, b)) for name, backend in backends(case, tensors).items()}
    contenders |= {name: lambda make=PEERS[name]: run(make(case)) for name in peers}
    comparison = Comparison(
        f"convolution {group}",
        str(case),
        operations=case.operations() * (3.0 if backward else 1.0),
        bytes=bytes_moved(tensors, tensors[0].nbytes // case.stride**2, backward),
    )
    return compare(
        benchmark,
        comparison,
        contenders,
        lambda: run(loop(case), [tensor.double() for tensor in tensors])(),
        effort=effort,
        tolerance=TOLERANCE[case.dtype],
        yardsticks=limits(comparison.operations, comparison.bytes, case.dtype),
    )


def measure_module(benchmark: Any, case: Case, effort: Effort, experts: int, *, backward: bool) -> Comparison:
    """Filters blended from experts by each sample's weights, then the convolution, as timm's CondConv2d does."""
    images, weight = case.tensors()
    routing = torch.rand(case.batch, experts, device=images.device).softmax(1)
    filters = torch.randn(experts, weight[0].numel(), device=images.device) / case.kernel
    tensors = [images, routing, filters]
    run = runner(case, tensors, backward)

    def ours(backend: str | None) -> Callable[..., Tensor]:
        convolve = hamlet(case, backend)
        return lambda images, routing, filters: convolve(images, (routing @ filters).view(weight.shape))

    def exact(images: Tensor, routing: Tensor, filters: Tensor) -> Tensor:
        return loop(case)(images, (routing @ filters).view(weight.shape))

    found = backends(case, [images, weight]).items()
    contenders = {name: lambda backend=backend: run(ours(backend)) for name, backend in found}
    contenders["timm CondConv2d"] = lambda: run(blended(case, experts))
    contenders["compiled CondConv2d"] = lambda: run(blended(case, experts, compile=True))
    comparison = Comparison(
        f"module of blended experts, {'forward + backward' if backward else 'forward'}",
        f"{case}, {experts} experts",
        operations=(case.operations() + 2.0 * weight.numel() * experts) * (3.0 if backward else 1.0),
        bytes=bytes_moved(tensors, tensors[0].nbytes // case.stride**2, backward),
    )
    return compare(
        benchmark,
        comparison,
        contenders,
        lambda: run(exact, [tensor.double() for tensor in tensors])(),
        effort=effort,
        tolerance=TOLERANCE[case.dtype],
        yardsticks=limits(comparison.operations, comparison.bytes),
    )

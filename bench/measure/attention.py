"""A case of cross-scale attention: HAMLET's backends and every peer, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench.clock import DEVICE
from bench.comparison import Comparison
from bench.harness import TOLERANCE, Effort, compare
from bench.measure.backends import asked
from bench.peers import natten
from bench.peers.attention import PEERS, Attend, Case, exact
from bench.runs import Run, bytes_moved, forward, forward_backward
from bench.yardsticks import limits
from hamlet.ops import available_backends, cross_scale_attention

FORWARD, BACKWARD = 2, 7
"""Products of a query or a key with a weight or a logit that a pair takes, each of D multiply-adds."""


def hamlet(case: Case, backend: str | None = None) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, radius: Any = case.radius) -> Tensor:
        settings: dict[str, Any] = {"radius": radius, "max_radius": case.radius, "softness": case.softness}
        return cross_scale_attention(query, key, value, **settings, backend=backend)

    return attend


def runner(tensors: list[Tensor], backward: bool) -> Callable[..., Run]:
    """What makes a run of a function, on these tensors or on others given after it."""
    incoming = torch.randn_like(tensors[0])

    def run(function: Callable[..., Tensor], given: list[Tensor] = tensors) -> Run:
        return forward_backward(function, given, incoming) if backward else forward(function, given)

    return run


def contenders(case: Case, run: Callable[..., Run], tensors: list[Tensor], peers: Iterable[str]) -> dict[str, Any]:
    """HAMLET as it chooses for itself, its other backends by name, and the peers; NATTEN where there is a GPU."""
    query, key, value, radius = tensors if len(tensors) == 4 else (*tensors, case.radius)
    names = available_backends("cross_scale_attention", query, key, value, radius=radius, max_radius=case.radius)
    found = {name: lambda backend=backend: run(hamlet(case, backend)) for name, backend in asked(names).items()}
    found |= {name: lambda make=PEERS[name]: run(make(case, query.dtype)) for name in peers}
    if DEVICE.type == "cuda" and len(tensors) == 3 and natten.fits(case):
        found[natten.NAME] = lambda: run(natten.make(case, query.dtype))
    return found


def measure(
    benchmark: Any,
    group: str,
    case: Case,
    effort: Effort,
    *,
    tensors: list[Tensor] | None = None,
    peers: Iterable[str] = PEERS,
    backward: bool = False,
    at: Mapping[str, float] = MappingProxyType({}),
    note: str = "",
) -> Comparison:
    """Compare on ``tensors``: query, key and value, and a radius if each query and head has its own."""
    tensors = tensors or case.tensors()
    run, doubles = runner(tensors, backward), [tensor.double() for tensor in tensors]
    comparison = Comparison(
        f"attention {group}",
        ", ".join(filter(None, (str(case), note))),
        operations=2.0 * (BACKWARD if backward else FORWARD) * case.pairs(*tensors[3:]) * case.channels,
        bytes=bytes_moved(tensors, tensors[0].nbytes, backward),
        at=dict(at),
    )
    found = contenders(case, run, tensors, peers)
    compare(
        benchmark,
        comparison,
        found,
        lambda: run(exact(case), doubles)(),
        effort=effort,
        tolerance=TOLERANCE[tensors[0].dtype],
        yardsticks=limits(comparison.operations, comparison.bytes, tensors[0].dtype),
        other_functions={natten.NAME: lambda: run(natten.definition(case), doubles)()},
    )
    return comparison

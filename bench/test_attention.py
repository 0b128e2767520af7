"""Cross-scale attention on the grids of a feature pyramid, forward, and forward with backward."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from bench.harness import TOLERANCE, Comparison, compare, forward, forward_backward, seconds
from bench.peers.attention import PEERS, STRONGEST, Case
from bench.yardsticks import PEAK, peak
from hamlet.ops import available_backends, cross_scale_attention

FULL = [Case(56, 28, 3.0), Case(28, 56, 6.0), Case(28, 14, 3.0), Case(56, 56, 3.0)]
SMALL = [Case(14, 7, 1.5, 2, 2, 16), Case(9, 18, 4.0, 2, 2, 16), Case(14, 7, 3.0, 2, 2, 16), Case(8, 8, 2.0, 2, 2, 16)]
GRIDS = pytest.mark.parametrize("index", range(4), ids=["finer queries", "finer keys", "wide", "same grid"])
GATHER_LIMIT = 4e9
"""Bytes of gathered windows beyond which the uncompiled gather is not tried."""
COMPILED = ("compiled gather", "compiled 7x7 blocks")


def hamlet(case, backend=None):
    def attend(query, key, value, radius=case.radius):
        settings = {"radius": radius, "max_radius": case.radius, "softness": case.softness}
        return cross_scale_attention(query, key, value, **settings, backend=backend)

    return attend


def contenders(case, runner, tensors, peers=tuple(PEERS)):
    query, key, value, radius = tensors if len(tensors) == 4 else (*tensors, case.radius)
    names = available_backends("cross_scale_attention", query, key, value, radius=radius, max_radius=case.radius)
    backends = dict.fromkeys(names) | {name: name for name in names[1:]}
    found = {f"HAMLET ({name})": lambda asked=asked: runner(hamlet(case, asked)) for name, asked in backends.items()}
    for name in peers:
        if name == "gather + einsum" and 2 * 4 * case.pairs() * case.channels > GATHER_LIMIT:
            continue
        found[name] = lambda make=PEERS[name]: runner(make(case, query.dtype))
    return found


def measure(
    benchmark, group, case, full, tensors=None, peers=tuple(PEERS), backward=False, yardsticks=MappingProxyType({})
):
    """Compare on ``tensors``: query, key and value, and a radius if each query and head has its own."""
    tensors = tensors or case.tensors()
    dtype = tensors[0].dtype
    incoming = torch.randn_like(tensors[0])

    def runner(function, inputs=tensors):
        return forward_backward(function, inputs, incoming) if backward else forward(function, inputs)

    comparison = Comparison(
        f"attention {group}",
        str(case),
        operations=2.0 * (7 if backward else 2) * case.pairs(*tensors[3:]) * case.channels,
        bytes=sum(tensor.nbytes for tensor in (*tensors, incoming)) * (3 if backward else 1),
    )
    compare(
        benchmark,
        comparison,
        contenders(case, runner, tensors, peers),
        lambda: runner(PEERS["dense logits + mask"](case, torch.float64), [tensor.double() for tensor in tensors])(),
        rounds=5 if full else 1,
        tolerance=TOLERANCE[dtype],
        yardsticks={PEAK: peak(comparison.operations), **yardsticks},
    )
    assert comparison.outcomes[0].problem is None
    assert not [outcome for outcome in comparison.outcomes if (outcome.problem or "").startswith("wrong")]
    return comparison


@GRIDS
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_attention(index, backward, full, shown, benchmark):
    case = (FULL if full else SMALL)[index]
    group = "forward + backward" if backward else "forward"
    shown.append(measure(benchmark, group, case, full, backward=backward))


@GRIDS
def test_one_thread(index, full, shown, benchmark, one_thread):
    case = (FULL if full else SMALL)[index]
    shown.append(measure(benchmark, "forward, 1 thread", case, full, peers=STRONGEST))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(dtype, full, shown, benchmark):
    case = (FULL if full else SMALL)[0]
    tensors = case.tensors(dtype)
    single = forward(hamlet(case), [tensor.float() for tensor in tensors])
    against = {"float32 HAMLET": lambda: seconds(single)}
    group = f"forward, {str(dtype).removeprefix('torch.')}"
    shown.append(measure(benchmark, group, case, full, tensors, STRONGEST, yardsticks=against))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0, 1), (0, 0.38)], ids=["all", "half", "quarter"])
def test_time_falls_with_the_work(low, high, full, shown, benchmark):
    """A radius for each query and head, so many that about all the pairs of the largest window are left, or fewer."""
    case = (FULL if full else SMALL)[0]
    tensors = case.tensors()
    radius = case.radii(low, high)
    largest = forward(hamlet(case), tensors)
    against = {"full window, HAMLET": lambda: seconds(largest)}
    comparison = measure(
        benchmark, "forward, drawn radii", case, full, [*tensors, radius], COMPILED, yardsticks=against
    )
    work = case.pairs(radius) / case.pairs()
    time = comparison.outcomes[0].median / comparison.yardsticks[-1].median
    comparison.title += f", {work:.0%} of the pairs in {time:.0%} of the time"
    shown.append(comparison)


def test_learned_radius(full, shown, benchmark):
    """The radius has a gradient: every peer makes its mask anew, of a radius for each query and head."""
    case = (FULL if full else SMALL)[0]
    tensors = [*case.tensors(), case.radii(0, 1)]
    peers = ("dense logits + mask", *STRONGEST)
    group = "forward + backward, learned radius"
    shown.append(measure(benchmark, group, case, full, tensors, peers, backward=True))


def test_call_overhead(full, shown, benchmark):
    """One call on 1 x 7 x 7 x 1 x 8: nothing but overhead."""
    case = Case(7, 7, 1.0, batch=1, heads=1, channels=8)
    tensors = case.tensors()
    exact = [tensor.double() for tensor in tensors]
    comparison = Comparison("call overhead", str(case), operations=0, bytes=0)
    peers = tuple(name for name in PEERS if not name.startswith("compiled"))
    compare(
        benchmark,
        comparison,
        contenders(case, lambda function: forward(function, tensors), tensors, peers),
        lambda: forward(PEERS["dense logits + mask"](case, torch.float64), exact)(),
        rounds=200 if full else 2,
        tolerance=TOLERANCE[torch.float32],
    )
    shown.append(comparison)
    assert comparison.outcomes[0].problem is None

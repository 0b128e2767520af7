"""Cross-scale attention on the grids of a feature pyramid, forward, and forward with backward."""

from __future__ import annotations

import pytest
import torch

from bench.measure.attention import measure
from bench.peers.attention import PEERS, STRONGEST, Case

GRIDS = {
    "56-on-56": Case(56, 56, 3.0),
    "14-on-14": Case(14, 14, 2.0),
    "56-on-28": Case(56, 28, 3.0),
    "28-on-14": Case(28, 14, 3.0),
    "14-on-7": Case(14, 7, 1.5),
    "28-on-56": Case(28, 56, 6.0),
    "14-on-28": Case(14, 28, 3.0),
    "28-on-28": Case(28, 28, 6.0),
    "7-on-14": Case(7, 14, 3.0),
    "14-on-56": Case(14, 56, 12.0),
    "7-on-56": Case(7, 56, 12.0),
    "56-on-28-B1": Case(56, 28, 3.0, batch=1),
    "28-on-28-B1": Case(28, 28, 6.0, batch=1),
    "14-on-7-B1": Case(14, 7, 1.5, batch=1),
    "28-on-14-B32": Case(28, 14, 3.0, batch=32),
    "14-on-14-B32": Case(14, 14, 2.0, batch=32),
    "7-on-7-B32": Case(7, 7, 1.0, batch=32),
}
BASE = Case(56, 28, 3.0)
CHANNELS = {channels: Case(28, 14, 3.0, heads=256 // channels, channels=channels) for channels in (16, 64, 128)}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DRAWN = {"all": (1, 1), "three-quarters": (0.6, 1), "half": (0, 1), "quarter": (0, 0.38), "tenth": (0, 0.1)}
"""Shares of the way from the least radius to the largest that radii are drawn between: about that much work is left."""
WAYS = pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])


def way(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


@pytest.mark.parametrize("name", GRIDS)
@WAYS
def test_grids(name, backward, sized, judged, benchmark, effort):
    judged(measure(benchmark, way(backward), sized(GRIDS[name]), effort, backward=backward))


@pytest.mark.parametrize("channels", CHANNELS)
@WAYS
def test_channels(channels, backward, sized, judged, benchmark, effort):
    group = f"{way(backward)}, channels a head"
    judged(measure(benchmark, group, sized(CHANNELS[channels]), effort, backward=backward))


@pytest.mark.parametrize("dtype", DTYPES)
@WAYS
def test_half_precision(dtype, backward, sized, judged, benchmark, effort):
    case = sized(BASE)
    tensors = case.tensors(DTYPES[dtype])
    judged(measure(benchmark, f"{way(backward)}, {dtype}", case, effort, tensors=tensors, backward=backward))


def test_one_thread(sized, judged, benchmark, effort, one_thread):
    judged(measure(benchmark, "forward, 1 thread", sized(BASE), effort))


@pytest.mark.parametrize("name", DRAWN)
@WAYS
def test_drawn_radii(name, backward, sized, judged, benchmark, effort):
    """A radius for each query and head, its gradient included: every peer makes its mask anew."""
    case = sized(BASE)
    radius = case.radii(*DRAWN[name])
    work = case.pairs(radius) / case.pairs()
    comparison = measure(
        benchmark,
        f"{way(backward)}, drawn radii",
        case,
        effort,
        tensors=[*case.tensors(), radius],
        peers=PEERS if name == "half" else STRONGEST,
        backward=backward,
        at={"pairs": work},
        note=f"{work:.0%} of the pairs",
    )
    judged(comparison)

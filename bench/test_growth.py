"""How time and memory grow: with the image, the batch, the levels and the heads, to where peers run out of memory."""

from __future__ import annotations

import pytest

from bench.measure import attention, pyramid
from bench.peers.attention import PEERS, STRONGEST, Case

SIDES = (7, 14, 28, 56, 112)
BATCHES = (1, 4, 16, 64)
FORWARD, BACKWARD = "growth with the {}, forward", "growth with the {}, forward + backward"
HEADS = (1, 4, 16)
LEVELS = (1, 2, 3, 4)
FINEST = 56


@pytest.mark.parametrize("side", SIDES)
def test_image_side(side, sized, judged, benchmark, effort):
    case = sized(Case(side, side, 3.0, batch=1))
    judged(attention.measure(benchmark, FORWARD.format("grid's side"), case, effort, peers=PEERS, at={"side": side}))


@pytest.mark.parametrize("side", SIDES)
def test_image_side_with_backward(side, sized, judged, benchmark, effort):
    case = sized(Case(side, side, 3.0, batch=1))
    group, at = BACKWARD.format("grid's side"), {"side": side}
    judged(attention.measure(benchmark, group, case, effort, peers=STRONGEST, backward=True, at=at))


@pytest.mark.parametrize("batch", BATCHES)
def test_batch_with_backward(batch, sized, judged, benchmark, effort):
    case = sized(Case(28, 14, 3.0, batch=batch))
    group, at = BACKWARD.format("batch"), {"batch": batch}
    judged(attention.measure(benchmark, group, case, effort, peers=STRONGEST, backward=True, at=at))


@pytest.mark.parametrize("batch", BATCHES)
def test_batch(batch, sized, judged, benchmark, effort):
    case = sized(Case(28, 14, 3.0, batch=batch))
    judged(attention.measure(benchmark, FORWARD.format("batch"), case, effort, peers=PEERS, at={"batch": batch}))


@pytest.mark.parametrize("heads", HEADS)
def test_heads(heads, sized, judged, benchmark, effort):
    case = sized(Case(28, 14, 3.0, heads=heads))
    judged(attention.measure(benchmark, FORWARD.format("heads"), case, effort, peers=PEERS, at={"heads": heads}))


@pytest.mark.parametrize("levels", LEVELS)
def test_levels(levels, full, judged, benchmark, effort):
    finest, batch, heads, channels = (FINEST, 1, 8, 32) if full else (8, 1, 1, 8)
    grid = pyramid.cases((finest >> level for level in range(levels)), batch, heads, channels)
    # FlexAttention compiles every pair by itself, which takes minutes; the layer of three levels has it.
    peers = [name for name in pyramid.PEERS if name != pyramid.FLEX]
    found = pyramid.measure(benchmark, FORWARD.format("levels"), grid, effort, peers=peers, at={"levels": levels})
    judged(found)

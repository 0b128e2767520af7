"""One call on a few pixels: nothing but overhead."""

from __future__ import annotations

import pytest

from bench.harness import QUICK, TINY
from bench.measure import attention, convolution, pyramid
from bench.peers.attention import EAGER, PEERS, Case
from bench.peers.convolution import PEERS as CONVOLUTIONS
from bench.peers.convolution import Case as Images

WAYS = pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])


@pytest.fixture
def effort(full):
    return TINY if full else QUICK


def group(backward: bool) -> str:
    return f"call overhead, {'forward + backward' if backward else 'forward'}"


@WAYS
def test_attention(backward, judged, benchmark, effort):
    case = Case(7, 7, 1.0, batch=1, heads=1, channels=8)
    judged(attention.measure(benchmark, group(backward), case, effort, peers=PEERS, backward=backward))


@WAYS
def test_convolution(backward, judged, benchmark, effort):
    case = Images(1, 8, 7, dilations=(1,))
    judged(convolution.measure(benchmark, group(backward), case, effort, peers=CONVOLUTIONS, backward=backward))


@WAYS
def test_pyramid(backward, judged, benchmark, effort):
    grid = pyramid.cases((4, 2), batch=1, heads=1, channels=8)
    judged(pyramid.measure(benchmark, group(backward), grid, effort, peers=EAGER, backward=backward))

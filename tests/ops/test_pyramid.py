from __future__ import annotations

import pytest
import torch

from hamlet.ops import cross_scale_attention, pyramid_attention
from tests.ops import dense

GRIDS = [(9, 7), (5, 4), (2, 3)]
REACH = [[3.0, 1.5, 1.0], [4.0, 2.0, 0.5], [9.0, 4.5, 2.0]]


pytestmark = pytest.mark.usefixtures("every_backend")


@pytest.fixture
def layer():
    """A layer of three levels where one pair is skipped, one has a plain number, and some have gates."""
    queries, keys, values = (
        [torch.randn(2, *grid, 2, channels, dtype=torch.float64, requires_grad=True) for grid in GRIDS]
        for channels in (4, 4, 3)
    )
    radius = [
        [torch.rand(2, *grid, 2, dtype=torch.float64) * bound for bound in row]
        for grid, row in zip(GRIDS, REACH, strict=True)
    ]
    radius[0][2], radius[1][1] = None, 1.25
    gate = [
        [None] * 3,
        [torch.rand(2, *GRIDS[1], 1, dtype=torch.float64)] * 3,
        [None, torch.rand(2, dtype=torch.float64), None],
    ]
    extents = [torch.tensor([[9, 4], [6, 7]]), torch.tensor([[5, 2], [3, 4]]), torch.tensor([[2, 2], [1, 3]])]
    return (queries, keys, values), {"radius": radius, "gate": gate, "max_radius": REACH, "extents": extents}


def tensors_of(layer):
    levels, arguments = layer
    nested = [*levels, *arguments["radius"], *arguments["gate"]]
    unique = {id(t): t.requires_grad_() for row in nested for t in row if isinstance(t, torch.Tensor)}
    return list(unique.values())


def pair_sum(attention, layer, index):
    """Level ``index`` of the layer as the sum of single calls."""
    (queries, keys, values), arguments = layer
    total = 0
    for j in range(3):
        if arguments["radius"][index][j] is not None:
            out = attention(
                queries[index], keys[j], values[j], radius=arguments["radius"][index][j],
                max_radius=REACH[index][j], gate=arguments["gate"][index][j], softness=0.8,
                query_extent=arguments["extents"][index], key_extent=arguments["extents"][j],
            )  # fmt: skip
            total = total + (out[0] if isinstance(out, tuple) else out)
    return total


@pytest.mark.parametrize("attention", [cross_scale_attention, dense.attention], ids=["single calls", "definition"])
def test_a_layer_is_the_sum_of_its_pairs(layer, attention):
    leaves = tensors_of(layer)
    levels, arguments = layer
    outs = pyramid_attention(*levels, **arguments, softness=0.8)
    expected = [pair_sum(attention, layer, index) for index in range(3)]
    weights = [torch.randn_like(out) for out in outs]
    got, want = (torch.autograd.grad(results, leaves, weights) for results in (outs, expected))
    for result, wanted in zip((*outs, *got), (*expected, *want), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-8, atol=1e-8)


def test_a_level_without_pairs_is_zero_and_has_no_gradient():
    levels = [torch.randn(1, 4, 4, 1, 2, requires_grad=True), torch.randn(1, 2, 2, 1, 2, requires_grad=True)]
    outs = pyramid_attention(
        levels, levels, levels, radius=[[1.0, None], [None, None]], max_radius=[[1.0, 1.0], [1.0, 1.0]]
    )
    assert not outs[1].any()
    sum(out.sum() for out in outs).backward()
    assert levels[0].grad.any()
    assert not levels[1].grad.any()


def test_half_precision_sums_the_pairs_in_float32():
    levels = [torch.randn(1, 6, 6, 2, 8, dtype=torch.bfloat16) for _ in range(3)]
    # All weights are 1: no rounding of theirs, which a kernel on matrix units may do, hides how the pairs are summed.
    queries = [torch.zeros_like(level) for level in levels]
    square = [[2.0] * 3 for _ in range(3)]
    outs = pyramid_attention(queries, levels, levels, radius=square, max_radius=square)
    exact = [level.double() for level in levels]
    for query, out in zip(queries, outs, strict=True):
        want = sum(dense.attention(query.double(), own, own, radius=2.0, max_radius=2.0)[0] for own in exact)
        # One rounding of the sum: half a unit in the last of bfloat16's eight bits.
        torch.testing.assert_close(out.double(), want, rtol=2**-8, atol=1e-5)


def test_a_gradient_through_one_level_alone(layer):
    levels, arguments = layer
    outs = pyramid_attention(*levels, **arguments)
    (gradient,) = torch.autograd.grad(outs[2].sum(), levels[1][0])
    single = cross_scale_attention(
        levels[0][2], levels[1][0], levels[2][0], radius=arguments["radius"][2][0], max_radius=REACH[2][0],
        query_extent=arguments["extents"][2], key_extent=arguments["extents"][0],
    )  # fmt: skip
    (want,) = torch.autograd.grad(single.sum(), levels[1][0])
    torch.testing.assert_close(gradient, want)

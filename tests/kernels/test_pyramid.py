"""The Triton pyramid in the interpreter: one launch for all pairs, against the sum of their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from hamlet.ops import pyramid_attention, use_backend
from tests.ops import dense

GRIDS = [(9, 7), (5, 4), (2, 3)]
REACH = [[3.0, 1.5, 1.0], [4.0, 2.0, 0.5], [9.0, 4.5, 2.0]]


@pytest.fixture(autouse=True)
def on_triton():
    with use_backend("triton"):
        yield


@pytest.fixture
def layer():
    """Three levels where one pair is skipped, one has a plain number, and some have gates."""
    queries, keys, values = (
        [torch.randn(2, *grid, 2, channels, requires_grad=True) for grid in GRIDS] for channels in (4, 4, 3)
    )
    radius = [
        [(torch.rand(2, *grid, 2) * bound).requires_grad_() for bound in row]
        for grid, row in zip(GRIDS, REACH, strict=True)
    ]
    radius[0][2], radius[1][1] = None, 1.25
    gate = [
        [None] * 3,
        [torch.rand(2, *GRIDS[1], 1, requires_grad=True)] * 3,
        [None, torch.rand(2, requires_grad=True), None],
    ]
    extents = [torch.tensor([[9, 4], [6, 7]]), torch.tensor([[5, 2], [3, 4]]), torch.tensor([[2, 2], [1, 3]])]
    return (queries, keys, values), {"radius": radius, "gate": gate, "max_radius": REACH, "extents": extents}


def leaves_of(layer):
    levels, arguments = layer
    nested = [*levels, *arguments["radius"], *arguments["gate"]]
    return list({id(t): t for row in nested for t in row if isinstance(t, torch.Tensor)}.values())


def sums(layer):
    """Every level as the sum of the definitions of its pairs."""
    (queries, keys, values), arguments = layer
    totals = []
    for i, query in enumerate(queries):
        outs = [
            dense.attention(
                query.double(), keys[j].double(), values[j].double(), radius=arguments["radius"][i][j],
                max_radius=REACH[i][j], gate=arguments["gate"][i][j], softness=0.8,
                query_extent=arguments["extents"][i], key_extent=arguments["extents"][j],
            )[0]
            for j in range(3) if arguments["radius"][i][j] is not None
        ]  # fmt: skip
        totals.append(sum(outs))
    return totals


def test_a_layer_and_its_gradients_are_the_sum_of_its_pairs(layer):
    leaves = leaves_of(layer)
    levels, arguments = layer
    outs = pyramid_attention(*levels, **arguments, softness=0.8)
    expected = sums(layer)
    weights = [torch.randn_like(out) for out in outs]
    got = torch.autograd.grad(outs, leaves, weights)
    want = torch.autograd.grad(expected, leaves, [weight.double() for weight in weights])
    for result, wanted in zip((*outs, *got), (*expected, *want), strict=True):
        torch.testing.assert_close(result.double(), wanted.double(), rtol=1e-4, atol=1e-5)


def test_a_level_without_pairs_is_zero_and_has_no_gradient():
    levels = [torch.randn(1, 4, 4, 1, 2, requires_grad=True), torch.randn(1, 2, 2, 1, 2, requires_grad=True)]
    outs = pyramid_attention(
        levels, levels, levels, radius=[[1.0, None], [None, None]], max_radius=[[1.0, 1.0], [1.0, 1.0]]
    )
    assert not outs[1].any()
    sum(out.sum() for out in outs).backward()
    assert levels[0].grad.any()
    assert not levels[1].grad.any()


def test_the_pairs_are_summed_in_float32():
    levels = [torch.randn(1, 6, 6, 2, 8).half() for _ in range(3)]
    square = [[2.0] * 3 for _ in range(3)]
    outs = pyramid_attention(levels, levels, levels, radius=square, max_radius=square)
    exact = [level.double() for level in levels]
    for i, out in enumerate(outs):
        want = sum(dense.attention(exact[i], exact[j], exact[j], radius=2.0, max_radius=2.0)[0] for j in range(3))
        torch.testing.assert_close(out.double(), want, rtol=2**-10, atol=1e-3)


def test_one_launch_forward_and_two_backward(monkeypatch):
    from hamlet.ops.triton import layer as launcher

    launched = []
    launch = launcher._launch

    def counted(kernel, *arguments, **constants):
        launched.append(kernel)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(launcher, "_launch", counted)
    levels = [torch.randn(1, 2, 3, 1, 4, requires_grad=True), torch.randn(1, 1, 2, 1, 4, requires_grad=True)]
    square = [[1.0, 1.0], [1.0, 1.0]]
    outs = pyramid_attention(levels, levels, levels, radius=square, max_radius=square)
    assert launched == [launcher.attention_forward]
    sum(out.sum() for out in outs).backward()
    assert launched[1:] == [launcher.attention_backward_queries, launcher.attention_backward_keys]

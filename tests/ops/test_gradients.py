"""Numerical first and second derivatives of every operator in every differentiable argument."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hamlet.ops import cross_scale_attention, dynamic_conv2d, pyramid_attention

pytestmark = pytest.mark.usefixtures("every_backend")


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def radii(*shape, bound):
    """Radii whose ramps have no kink within a finite difference of any key, on grids of ratio 1, 2 or 1 / 2.

    There the distances are multiples of 1/4; so are the edges of a ramp of softness 1 about a radius that is one.
    """
    quarters = torch.randint(3, int(4 * bound) - 1, shape)
    return ((quarters + 0.25 + 0.5 * torch.rand(shape, dtype=torch.float64)) / 4).requires_grad_()


def attention_call():
    tensors = [
        leaf(2, 4, 2, 2, 3),
        leaf(2, 2, 4, 2, 3),
        leaf(2, 2, 4, 2, 2),
        radii(2, 4, 2, 2, bound=2),
        leaf(2, 4, 2, 2),
    ]
    return lambda q, k, v, r, g: cross_scale_attention(
        q, k, v, radius=r, max_radius=2.0, gate=g, return_lse=True
    ), tensors


def attention_with_extents_call():
    extents = {"query_extent": torch.tensor([[4, 2], [2, 2]]), "key_extent": torch.tensor([[2, 4], [2, 1]])}

    def call(q, k, v, r):
        out, lse = cross_scale_attention(q, k, v, radius=r, max_radius=2.0, return_lse=True, **extents)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    return call, [leaf(2, 4, 4, 1, 2), leaf(2, 2, 4, 1, 2), leaf(2, 2, 4, 1, 2), radii(2, 4, 4, 1, bound=2)]


def pyramid_call():
    def call(q0, q1, k0, k1, v0, v1, r, g):
        return tuple(
            pyramid_attention(
                [q0, q1], [k0, k1], [v0, v1], radius=[[1.3, r], [None, r[:, ::2, ::2]]],
                max_radius=[[2.0, 2.0], [2.0, 2.0]], gate=[[None, g], [None, None]],
            )
        )  # fmt: skip

    grids = [(4, 2), (2, 1)]
    levels = [leaf(1, *grid, 1, channels) for channels in (2, 2, 3) for grid in grids]
    return call, [*levels, radii(1, 4, 2, 1, bound=2), leaf(1, 4, 2, 1)]


def depthwise_call():
    return lambda x, w, b: dynamic_conv2d(x, w, b, dilation=[1, 2], groups=4, residual=True), [
        leaf(2, 4, 4, 3), leaf(2, 4, 1, 3, 3), leaf(2, 4)
    ]  # fmt: skip


def grouped_call():
    dilation, extent = torch.tensor([[2], [1]]), torch.tensor([[3, 5], [4, 2]])
    return lambda x, w, b: dynamic_conv2d(x, w, b, dilation=dilation, groups=2, stride=2, extent=extent), [
        leaf(2, 4, 4, 5), leaf(2, 2, 2, 3, 1), leaf(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make", [attention_call, attention_with_extents_call, pyramid_call, depthwise_call, grouped_call]
)
def test_derivatives(make, every_backend):
    call, tensors = make()
    assert gradcheck(call, tensors)
    # The second derivative is the reference's on every backend. All its entries on all of them would take 90 s.
    assert gradgradcheck(call, tensors, fast_mode=every_backend != "reference")

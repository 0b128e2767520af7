from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hamlet.ops import dynamic_conv2d
from tests.ops import dense

pytestmark = pytest.mark.usefixtures("every_backend")


@st.composite
def calls(draw):
    """Tensors and arguments of one call: depthwise and grouped, static and run-time dilation, any odd kernel."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    blocks, per_block = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    groups = blocks * per_block
    inputs, outputs = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 2)]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (1, 7)]))
    stride = draw(st.integers(1, 2))
    input = torch.randn(batch, groups * inputs, height, width, dtype=torch.float64)
    if draw(st.booleans()):
        input = input.to(memory_format=torch.channels_last)
    weight = torch.randn(batch, groups * outputs, inputs, *kernel, dtype=torch.float64)
    bias_shape = draw(st.sampled_from([None, (groups * outputs,), (batch, groups * outputs)]))
    bias = None if bias_shape is None else torch.randn(bias_shape, dtype=torch.float64)
    dilation = draw(
        st.one_of(
            st.integers(1, 4),
            st.lists(st.integers(1, 14), min_size=blocks, max_size=blocks),
            st.just(torch.randint(1, 5, (batch, blocks))),
        )
    )
    fixed = {"stride": stride, "dilation": dilation, "groups": groups, "extent": None}
    fixed["residual"] = inputs == outputs and stride == 1 and draw(st.booleans())
    if draw(st.booleans()):
        fixed["extent"] = torch.stack([torch.randint(1, size + 1, (batch,)) for size in (height, width)], 1)
    return [input, weight, bias], fixed


@given(calls())
@settings(max_examples=100, deadline=None)
def test_output_and_gradients_agree_with_the_definition(call):
    tensors, fixed = call
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    max_dilation = {"max_dilation": 4} if isinstance(fixed["dilation"], torch.Tensor) else {}
    out = dynamic_conv2d(*tensors, **fixed, **max_dilation)
    expected = dense.convolution(*tensors, **fixed)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    d_out = torch.randn_like(expected)
    got, want = (torch.autograd.grad(result, leaves, d_out) for result in (out, expected))
    for gradient, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [16, 4], ids=["depthwise", "grouped"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_error_is_at_most_twice_that_of_plain_pytorch_in_the_same_precision(dtype, groups, layout):
    input = torch.randn(2, 16, 15, 11, dtype=dtype).contiguous(memory_format=layout)
    tensors = [input, torch.randn(2, 16, 16 // groups, 3, 3, dtype=dtype)]
    exact = [t.double().requires_grad_() for t in tensors]
    d_out = torch.randn(2, 16, 15, 11, dtype=torch.float64)

    def results(function, leaves):
        out = function(*leaves, dilation=[1, 3], groups=groups)
        return [out, *torch.autograd.grad(out, leaves, d_out.to(out.dtype))]

    wanted = results(dense.convolution, exact)
    ours = results(dynamic_conv2d, [t.clone().requires_grad_() for t in tensors])
    theirs = results(dense.convolution, [t.clone().requires_grad_() for t in tensors])
    for got, other, want in zip(ours, theirs, wanted, strict=True):
        assert got.dtype == dtype
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-15


def test_hand_worked_sum():
    # A 3 x 3 box of ones over ones counts the neighbours: 4 at a corner, 6 at an edge, 9 inside; the second channel,
    # dilated by 2 on a 3 x 3 grid, reaches from a corner only the four corners, from an edge two, from the middle one.
    out = dynamic_conv2d(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 1, 3, 3), dilation=[1, 2], groups=2)
    assert out[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert out[0, 1].tolist() == [[4, 2, 4], [2, 1, 2], [4, 2, 4]]


@pytest.mark.parametrize("stride", [1, 2])
def test_memory_format_is_kept(stride):
    input = torch.randn(2, 8, 6, 5)
    weight = torch.randn(2, 8, 1, 3, 3)
    last = dynamic_conv2d(input.to(memory_format=torch.channels_last), weight, groups=8, stride=stride)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    first = dynamic_conv2d(input, weight, groups=8, stride=stride)
    assert first.is_contiguous()
    torch.testing.assert_close(last, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_padding_beyond_the_extent_may_hold_anything(dtype, layout):
    input = torch.randn(2, 4, 7, 6).to(dtype).to(memory_format=layout)
    extent = torch.tensor([[7, 3], [4, 6]])
    input[0, :, :, 3:] = math.nan
    input[1, :, 4:] = math.inf
    weight = torch.randn(2, 4, 1, 3, 3).to(dtype)
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    out = dynamic_conv2d(*leaves, dilation=[1, 2], groups=4, residual=True, extent=extent)
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for b, (height, width) in enumerate(extent.tolist()):
        alone = dynamic_conv2d(
            input[b : b + 1, :, :height, :width], weight[b : b + 1], dilation=[1, 2], groups=4, residual=True
        )
        torch.testing.assert_close(out[b : b + 1, :, :height, :width], alone)
        assert not out[b, :, height:].any()
        assert not out[b, :, :, width:].any()
        assert not gradients[0][b, :, height:].any()
        assert not gradients[0][b, :, :, width:].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_dilation_beyond_the_grid_leaves_the_centre():
    input, weight = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 1, 3, 3)
    out = dynamic_conv2d(input, weight, dilation=100)
    torch.testing.assert_close(out, input * weight[0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    "shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 5, 0)], ids=["no samples", "no rows", "no columns"]
)
@pytest.mark.parametrize("run_time", [False, True], ids=["static", "run-time dilation"])
def test_zero_sizes(shape, run_time):
    input = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[0], 4, 1, 3, 3, requires_grad=True)
    dilation = torch.ones(shape[0], 2, dtype=torch.int32) if run_time else [1, 2]
    out = dynamic_conv2d(input, weight, torch.zeros(4), dilation=dilation, groups=4)
    assert out.shape == shape
    out.sum().backward()
    assert input.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_results_have_the_same_bits_from_run_to_run():
    input, weight = torch.randn(4, 8, 13, 9), torch.randn(4, 8, 2, 3, 3)
    dilation = torch.randint(1, 4, (4, 2))

    def run():
        leaves = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = dynamic_conv2d(*leaves, dilation=dilation, groups=4)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    assert all(torch.equal(first, again) for first, again in zip(run(), run(), strict=True))

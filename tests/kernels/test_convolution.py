from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamlet.ops import available_backends, dynamic_conv2d, explain, use_backend
from tests.ops import dense

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True, scope="module")
def triton_backend():
    with use_backend("triton"):
        yield


def agrees(tensors, arguments, tolerance):
    """Output and gradients are within ``tolerance``, relative to the largest value, of the definition in float64."""
    leaves = [t.detach().requires_grad_() for t in tensors if t is not None]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out = dynamic_conv2d(*leaves, **arguments)
    want = dense.convolution(*exact, **{name: arguments[name] for name in arguments if name != "max_dilation"})
    d_out = torch.randn_like(want).to(out.dtype)
    got = [out, *torch.autograd.grad(out, leaves, d_out)]
    wanted = [want, *torch.autograd.grad(want, exact, d_out.double())]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == tensors[0].dtype
        assert (ours.double() - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())


@st.composite
def calls(draw):
    """One small call: depthwise and grouped, static and run-time dilation, any odd kernel, any strides."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 11)), draw(st.integers(1, 11))
    blocks, per_block = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    groups = blocks * per_block
    inputs, outputs = draw(st.sampled_from([(1, 1), (1, 1), (4, 4), (3, 1), (1, 2), (5, 9)]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (1, 5)]))
    stride = draw(st.integers(1, 2))
    half = torch.bfloat16 if (inputs, outputs) == (1, 1) else torch.float16  # what the interpreter multiplies
    dtype = draw(st.sampled_from([torch.float32, half]))
    input = torch.randn(batch, groups * inputs, height, width, dtype=dtype)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed", "every other"]))
    if layout == "channels_last":
        input = input.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        input = input.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "every other":
        input = torch.randn(batch, groups * inputs, height, 2 * width, dtype=dtype)[..., ::2]
    weight = torch.randn(batch, groups * outputs, inputs, *kernel, dtype=dtype)
    if draw(st.booleans()):
        weight = weight.transpose(1, 4).contiguous().transpose(1, 4)
    bias_shape = draw(st.sampled_from([None, (groups * outputs,), (batch, groups * outputs)]))
    bias = None if bias_shape is None else torch.randn(bias_shape, dtype=dtype)
    arguments = {"stride": stride, "groups": groups}
    arguments["dilation"] = draw(
        st.one_of(
            st.integers(1, 4),
            st.lists(st.integers(1, 14), min_size=blocks, max_size=blocks),
            st.just(torch.randint(1, 5, (batch, blocks))),
            st.just(torch.randint(1, 5, (batch, blocks), dtype=torch.int32)),
        )
    )
    if isinstance(arguments["dilation"], torch.Tensor):
        arguments["max_dilation"] = 4
    arguments["residual"] = inputs == outputs and stride == 1 and draw(st.booleans())
    if draw(st.booleans()):
        arguments["extent"] = torch.stack([torch.randint(1, size + 1, (batch,)) for size in (height, width)], 1)
    return [input, weight, bias], arguments, TOLERANCE[dtype]


@given(calls())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_output_and_gradients_agree_with_the_definition(call):
    agrees(*call)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride"),
    [(36, 36, 3, 1), (34, 34, 5, 2), (40, 1, 3, 1), (64, 2, 3, 2), (66, 1, 1, 1)],
    ids=["depthwise", "depthwise 5x5 stride 2", "one group", "32 a group stride 2", "66 a group"],
)
def test_more_tiles_than_one(channels, groups, kernel, stride, layout):
    input = torch.randn(1, channels, 11, 37).contiguous(memory_format=layout)
    weight = torch.randn(1, channels, channels // groups, kernel, kernel) / kernel
    agrees([input, weight, torch.randn(channels)], {"groups": groups, "stride": stride, "dilation": 2}, 1e-5)


def test_memory_format_is_kept():
    input, weight = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 1, 3, 3)
    last = dynamic_conv2d(input.to(memory_format=torch.channels_last), weight, groups=8)
    first = dynamic_conv2d(input, weight, groups=8)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert first.is_contiguous()
    assert torch.equal(last, first)


@pytest.mark.parametrize("per_group", [1, 4], ids=["depthwise", "grouped"])
def test_padding_beyond_the_extent_may_hold_anything(per_group):
    input = torch.randn(2, 4, 7, 6)
    input[0, :, :, 3:] = math.nan
    input[1, :, 4:] = math.inf
    extent = torch.tensor([[7, 3], [4, 6]])
    leaves = [input.requires_grad_(), torch.randn(2, 4, per_group, 3, 3, requires_grad=True)]
    out = dynamic_conv2d(*leaves, groups=4 // per_group, residual=True, extent=extent)
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for b, (height, width) in enumerate(extent.tolist()):
        for result in (out, gradients[0]):
            assert not result[b, :, height:].any()
            assert not result[b, :, :, width:].any()
    assert all(result.isfinite().all() for result in (out, *gradients))


def test_dilations_and_extents_beyond_their_bounds_are_clamped():
    # What a GPU cannot check without a synchronisation; the operator's own checks on the CPU are passed by.
    from hamlet.ops.triton import convolution

    input, weight = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 1, 3, 3)
    dilation, extent = torch.tensor([[0], [99]]), torch.tensor([[9, 9], [5, 4]])
    out = convolution.forward(input, weight, None, dilation, extent, [1], 2, 1, 2, False)
    inside = convolution.forward(input, weight, None, torch.tensor([[1], [2]]), None, [1], 2, 1, 2, False)
    assert torch.equal(out, inside)


@pytest.mark.parametrize(
    "shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 5, 0)], ids=["no samples", "no rows", "no columns"]
)
def test_zero_sizes(shape):
    input = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[0], 4, 1, 3, 3, requires_grad=True)
    out = dynamic_conv2d(input, weight, torch.zeros(4), groups=4)
    out.sum().backward()
    assert out.shape == input.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("per_group", [1, 8], ids=["depthwise", "grouped"])
def test_results_have_the_same_bits_from_run_to_run(per_group):
    input, weight = torch.randn(1, 8, 18, 17), torch.randn(1, 8, per_group, 3, 3)

    def run():
        leaves = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = dynamic_conv2d(*leaves, groups=8 // per_group)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    assert all(torch.equal(first, again) for first, again in zip(run(), run(), strict=True))


def test_double_backward_goes_through_the_reference():
    leaves = [torch.randn(1, 2, 4, 3, requires_grad=True), torch.randn(1, 2, 1, 3, 3, requires_grad=True)]
    first = torch.autograd.grad(dynamic_conv2d(*leaves, groups=2).square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
    assert all(gradient.isfinite().all() for gradient in second)


def test_it_serves_on_the_cpu_only_those_who_ask():
    arguments = (torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3))
    assert explain(dynamic_conv2d, *arguments, groups=2)["triton"] == []
    matrices = (torch.ones(1, 2, 4, 4, dtype=torch.bfloat16), torch.ones(1, 2, 2, 3, 3, dtype=torch.bfloat16))
    assert explain(dynamic_conv2d, *matrices)["triton"] == ["Triton's interpreter multiplies no bfloat16 matrices"]
    doubles = [tensor.double() for tensor in arguments]
    assert "triton" not in available_backends(dynamic_conv2d, *doubles, groups=2)
    with pytest.raises(ValueError, match=r"it takes no torch\.float64"):
        dynamic_conv2d(*doubles, groups=2)

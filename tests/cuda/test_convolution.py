from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hamlet.ops import available_backends, dynamic_conv2d, explain
from hamlet.ops.cuda import convolution, library
from tests.cuda import build
from tests.kernels.test_convolution import TOLERANCE, agrees

pytestmark = pytest.mark.usefixtures("cuda_backend")

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@st.composite
def calls(draw):
    """One small call: static and run-time dilation, any odd filters, any strides, aligned channels and others."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 19)), draw(st.integers(1, 21))
    blocks, per_block = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 8, 16]))
    channels = blocks * per_block
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (3, 1), (1, 5), (9, 3)]))
    stride = draw(st.integers(1, 2))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    input = torch.randn(batch, channels, height, width, dtype=dtype)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed", "every other", "shifted"]))
    if layout == "channels_last":
        input = input.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        input = input.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "every other":
        input = torch.randn(batch, channels, height, 2 * width, dtype=dtype)[..., ::2]
    elif layout == "shifted":  # by one element from where copies of 16 bytes can begin
        input = torch.randn(input.numel() + 1, dtype=dtype)[1:].view(input.shape)
    weight = torch.randn(batch, channels, 1, *kernel, dtype=dtype)
    if draw(st.booleans()):
        weight = weight.transpose(1, 4).contiguous().transpose(1, 4)
    bias_shape = draw(st.sampled_from([None, (channels,), (batch, channels)]))
    bias = None if bias_shape is None else torch.randn(bias_shape, dtype=dtype)
    arguments = {"stride": stride, "groups": channels, "residual": stride == 1 and draw(st.booleans())}
    arguments["dilation"] = draw(
        st.one_of(
            st.integers(1, 4),
            st.lists(st.integers(1, 24), min_size=blocks, max_size=blocks),
            st.just(torch.randint(1, 5, (batch, blocks))),
            st.just(torch.randint(1, 5, (batch, blocks), dtype=torch.int32)),
        )
    )
    if isinstance(arguments["dilation"], torch.Tensor):
        arguments["max_dilation"] = 4
    if draw(st.booleans()):
        arguments["extent"] = torch.stack([torch.randint(1, size + 1, (batch,)) for size in (height, width)], 1)
    return [input, weight, bias], arguments, TOLERANCE[dtype]


@given(calls())
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_output_and_gradients_agree_with_the_definition(call):
    agrees(*call)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "shape"),
    [(80, 3, 1, (19, 37)), (36, 5, 2, (11, 37)), (2, 7, 1, (61, 5)), (2, 3, 1, (3, 300))],
    ids=["channels", "stride 2", "rows", "columns"],
)
def test_more_tiles_than_one(channels, kernel, stride, shape, dtype, layout):
    input = torch.randn(1, channels, *shape, dtype=dtype).contiguous(memory_format=layout)
    weight = (torch.randn(1, channels, 1, kernel, kernel) / kernel).to(dtype)
    arguments = {"groups": channels, "stride": stride, "dilation": [1, 2]}
    agrees([input, weight, torch.randn(channels, dtype=dtype)], arguments, TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_padding_beyond_the_extent_may_hold_anything(layout):
    input = torch.randn(2, 8, 7, 6).contiguous(memory_format=layout)
    input[0, :, :, 3:] = math.nan
    input[1, :, 4:] = math.inf
    extent = torch.tensor([[7, 3], [4, 6]])
    leaves = [input.requires_grad_(), torch.randn(2, 8, 1, 3, 3, requires_grad=True)]
    out = dynamic_conv2d(*leaves, groups=8, residual=True, extent=extent)
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for b, (height, width) in enumerate(extent.tolist()):
        for result in (out, gradients[0]):
            assert not result[b, :, height:].any()
            assert not result[b, :, :, width:].any()
    assert all(result.isfinite().all() for result in (out, *gradients))


def test_dilations_and_extents_beyond_their_bounds_are_clamped():
    # What a GPU cannot check without a synchronisation; the operator's own checks on the CPU are passed by.
    input, weight = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 1, 3, 3)
    dilation, extent = torch.tensor([[0], [2**40]]), torch.tensor([[9, 9], [5, 4]])
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


def test_what_it_cannot_serve_is_told_and_it_never_volunteers(monkeypatch):
    monkeypatch.delenv("HAMLET_BACKEND", raising=False)
    image, weight = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3)
    assert explain(dynamic_conv2d, image, weight, groups=2)["cuda"] == []
    cases = {
        "it takes no torch.float64": ((image.double(), weight.double()), {"groups": 2}),
        "it takes depthwise convolutions": ((image, torch.ones(1, 2, 2, 3, 3)), {}),
        "at most 32 dilations": (
            (torch.ones(1, 33, 1, 1), torch.ones(1, 33, 1, 1, 1)),
            {"groups": 33, "dilation": [1] * 33},
        ),
        "do not fit in this GPU's shared memory": ((torch.ones(1, 2, 1, 9000), weight), {"groups": 2}),
    }
    for reason, (tensors, arguments) in cases.items():
        (found,) = explain(dynamic_conv2d, *tensors, **arguments)["cuda"]
        assert reason in found
    library_of_gpu = library.kernels
    monkeypatch.setattr(library, "kernels", None)
    assert explain(dynamic_conv2d, image, weight, groups=2)["cuda"][0].startswith("the CUDA kernels were not built: ")
    monkeypatch.setattr(library, "kernels", library_of_gpu)
    assert available_backends(dynamic_conv2d, image, weight, groups=2)[0] == "cuda"
    from hamlet.ops import backends

    prepared = (image, weight, None, None, None, [1], 4, 1, 2, False)
    assert backends.choose("dynamic_conv2d", None, prepared).name != "cuda"


FAULTS = {
    "a missing barrier": (
        "            // All must be done with a stage before it is filled again.\n            synchronise();",
        "",
    ),
    "a row of halo too few": (
        "return p.skip * (tile.rows - 1) + filter_height();",
        "return p.skip * (tile.rows - 1) + filter_height() - 1;",
    ),
    "a swapped stage": ("sum_tile(stage(turn), ", "sum_tile(stage(turn + 1), "),
    "a group too many under way": ("wait_for_copies<STAGES - 1>", "wait_for_copies<STAGES>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_broken_on_purpose_is_caught(fault, tmp_path, monkeypatch):
    shutil.copytree(build.CSRC, tmp_path / "csrc")
    broken = tmp_path / "csrc" / "cuda" / "depthwise.h"
    right, wrong = FAULTS[fault]
    assert broken.read_text().count(right) == 1
    broken.write_text(broken.read_text().replace(right, wrong))
    monkeypatch.setattr(library, "kernels", build.kernels(tmp_path / "csrc", "depthwise_*.cu"))
    for layout in LAYOUTS:
        input, weight = torch.randn(1, 32, 130, 33).contiguous(memory_format=layout), torch.randn(1, 32, 1, 3, 3)
        with pytest.raises((RuntimeError, AssertionError), match=r"depthwise forward, block .*|not close"):
            torch.testing.assert_close(
                dynamic_conv2d(input, weight, groups=32), dynamic_conv2d(input, weight, groups=32, backend="reference")
            )

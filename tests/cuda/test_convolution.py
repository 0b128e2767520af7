from __future__ import annotations

import math
import re
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


@pytest.fixture(autouse=True)
def exact_float32():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def copy_engine(kernels_on_cpu):
    kernels_on_cpu.set_bulk_copies(True)
    yield kernels_on_cpu
    kernels_on_cpu.set_bulk_copies(False)


@st.composite
def calls(draw, grouped):
    """One small call: static and run-time dilation, any odd filters, any strides, aligned channels and others."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 19)), draw(st.integers(1, 21))
    blocks, per_block = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3] if grouped else [1, 3, 8, 16]))
    groups, inputs, outputs = blocks * per_block, 1, 1
    if grouped:
        inputs, outputs = draw(st.sampled_from([(4, 4), (8, 8), (16, 8), (8, 16), (1, 2), (2, 1), (5, 9), (12, 20)]))
    channels, made = groups * inputs, groups * outputs
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
    weight = torch.randn(batch, made, inputs, *kernel, dtype=dtype)
    if draw(st.booleans()):
        weight = weight.transpose(1, 4).contiguous().transpose(1, 4)
    bias_shape = draw(st.sampled_from([None, (made,), (batch, made)]))
    bias = None if bias_shape is None else torch.randn(bias_shape, dtype=dtype)
    arguments = {"stride": stride, "groups": groups}
    arguments["residual"] = inputs == outputs and stride == 1 and draw(st.booleans())
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


@given(calls(grouped=False), st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_depthwise_agrees_with_the_definition(copy_engine, call, has_engine):
    copy_engine.set_bulk_copies(has_engine)
    agrees(*call)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "shape"),
    [
        ((3, 3), 1, [1, 2], (19, 16)),
        ((5, 5), 2, [1, 3], (11, 24)),
        ((7, 7), 1, [8, 1], (20, 8)),
        ((1, 5), 1, torch.tensor([[1, 8], [3, 5]]), (7, 16)),
        ((3, 3), 1, [9, 2], (12, 8)),
    ],
    ids=["3", "5, stride 2", "7, as far apart as can be", "run-time dilation", "one dilation too far apart"],
)
def test_tiles_copied_as_boxes(copy_engine, kernel, stride, dilation, shape, dtype, layout):
    channels, before = 48, copy_engine.boxes_copied()
    input = torch.randn(2, channels, *shape, dtype=dtype).contiguous(memory_format=layout)
    weight = (torch.randn(2, channels, 1, *kernel) / kernel[1]).to(dtype)
    arguments = {"groups": channels, "stride": stride, "dilation": dilation, "residual": stride == 1}
    if isinstance(dilation, torch.Tensor):
        arguments["max_dilation"] = 8
    agrees([input, weight, torch.randn(channels, dtype=dtype)], arguments, TOLERANCE[dtype])
    assert copy_engine.boxes_copied() >= before + 4  # a tile of each sample at least, forward and backward


@pytest.mark.parametrize(
    ("width", "shift", "arguments"),
    [
        (8, 0, {"dilation": 9}),
        (8, 0, {"extent": torch.tensor([[10, 5]])}),
        (5, 0, {}),
        (8, 1, {}),
    ],
    ids=["dilation", "extent", "rows of 20 bytes", "shifted"],
)
def test_what_the_engine_cannot_copy_is_copied_without_it(copy_engine, width, shift, arguments):
    before = copy_engine.boxes_copied()
    input = torch.randn(8 * 12 * width + shift)[shift:].view(1, 8, 12, width)
    weight = torch.randn(1, 8, 1, 3, 3)
    expected = dynamic_conv2d(input, weight, groups=8, backend="reference", **arguments)
    torch.testing.assert_close(dynamic_conv2d(input, weight, groups=8, **arguments), expected)
    assert copy_engine.boxes_copied() == before


@given(calls(grouped=True))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_grouped_agrees_with_the_definition(call):
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "dilation", "shape"),
    [
        (32, 32, 3, 1, 1, (17, 40)),
        (40, 36, 3, 2, 1, (15, 23)),
        (8, 24, 7, 1, 2, (9, 10)),
        (64, 8, 1, 1, 1, (6, 70)),
        (8, 8, 3, 1, 5, (30, 33)),
        (4, 4, 9, 2, 1, (3, 300)),
    ],
    ids=["tiles", "channels", "taps", "chunks", "pieces", "columns"],
)
def test_more_of_everything_than_a_block_of_threads_takes_at_once(
    inputs, outputs, kernel, stride, dilation, shape, dtype, layout
):
    input = torch.randn(1, 2 * inputs, *shape, dtype=dtype).contiguous(memory_format=layout)
    weight = (torch.randn(1, 2 * outputs, inputs, kernel, kernel) / (kernel * inputs**0.5)).to(dtype)
    arguments = {"groups": 2, "stride": stride, "dilation": [1, dilation]}
    agrees([input, weight, torch.randn(2 * outputs, dtype=dtype)], arguments, TOLERANCE[dtype])


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (12, 40)])
def test_float32_takes_tf32_where_pytorch_may(inputs, outputs):
    tensors = [torch.randn(2, 2 * inputs, 7, 9), torch.randn(2, 2 * outputs, inputs, 3, 3), torch.randn(2 * outputs)]
    with torch.backends.cudnn.flags(allow_tf32=True):
        agrees(tensors, {"groups": 2, "dilation": [1, 2]}, 2e-3)
        with pytest.raises(AssertionError):
            agrees(tensors, {"groups": 2, "dilation": [1, 2]}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("groups", [8, 2], ids=["depthwise", "grouped"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_padding_beyond_the_extent_may_hold_anything(layout, groups):
    input = torch.randn(2, 8, 7, 6).contiguous(memory_format=layout)
    input[0, :, :, 3:] = math.nan
    input[1, :, 4:] = math.inf
    extent = torch.tensor([[7, 3], [4, 6]])
    leaves = [input.requires_grad_(), torch.randn(2, 8, 8 // groups, 3, 3, requires_grad=True)]
    out = dynamic_conv2d(*leaves, groups=groups, residual=True, extent=extent)
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for b, (height, width) in enumerate(extent.tolist()):
        for result in (out, gradients[0]):
            assert not result[b, :, height:].any()
            assert not result[b, :, :, width:].any()
    assert all(result.isfinite().all() for result in (out, *gradients))


@pytest.mark.parametrize("groups", [2, 1], ids=["depthwise", "grouped"])
def test_dilations_and_extents_beyond_their_bounds_are_clamped(groups):
    # What a GPU cannot check without a synchronisation; the operator's own checks on the CPU are passed by.
    input, weight = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 2 // groups, 3, 3)
    dilation, extent = torch.tensor([[0], [2**40]]), torch.tensor([[9, 9], [5, 4]])
    out = convolution.forward(input, weight, None, dilation, extent, [1], 2, 1, groups, False)
    inside = convolution.forward(input, weight, None, torch.tensor([[1], [2]]), None, [1], 2, 1, groups, False)
    assert torch.equal(out, inside)


@pytest.mark.parametrize("groups", [4, 2], ids=["depthwise", "grouped"])
@pytest.mark.parametrize(
    "shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 5, 0)], ids=["no samples", "no rows", "no columns"]
)
def test_zero_sizes(shape, groups):
    input = torch.randn(shape, requires_grad=True)
    weight = torch.randn(shape[0], 4, 4 // groups, 3, 3, requires_grad=True)
    out = dynamic_conv2d(input, weight, torch.zeros(4), groups=groups)
    out.sum().backward()
    assert out.shape == input.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_no_outputs():
    input, weight = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(2, 0, 2, 3, 3)
    out = dynamic_conv2d(input, weight, groups=2)
    out.sum().backward()
    assert out.shape == (2, 0, 5, 5)
    assert torch.equal(input.grad, torch.zeros_like(input))


def test_what_it_cannot_serve_is_told_and_it_never_volunteers(monkeypatch):
    monkeypatch.delenv("HAMLET_BACKEND", raising=False)
    image, weight = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3)
    assert explain(dynamic_conv2d, image, weight, groups=2)["cuda"] == []
    cases = {
        "it takes no torch.float64": ((image.double(), weight.double()), {"groups": 2}),
        "it takes no images without channels": ((torch.ones(1, 0, 4, 4), torch.ones(1, 2, 0, 3, 3)), {}),
        "at most 536870912 pixels": ((torch.ones(()).expand(1, 2, 2**15, 2**15), torch.ones(1, 2, 2, 3, 3)), {}),
        "filters of such size do not fit": ((image, torch.ones(1, 2, 2, 65, 65)), {}),
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
        "return p.skip * (rows - 1) + filter_height();",
        "return p.skip * (rows - 1) + filter_height() - 1;",
    ),
    "a swapped stage": ("sum_tile(stage(turn), ", "sum_tile(stage(turn + 1), "),
    "a group too many under way": ("wait_for_copies<STAGES - 1>", "wait_for_copies<STAGES>"),
}
OF_BOXES = {
    "a missing barrier": FAULTS["a missing barrier"],
    "no fence before the next box": ("if (bulk()) leave_to_engine();", ""),
}
OF_GROUPED = {
    "a missing barrier": (
        "grouped_correlation",
        "            // All must be done with a stage before it is filled again.\n            synchronise();",
        "",
    ),
    "tables read before they are written": (
        "grouped_correlation",
        "filters(chunk));\n        synchronise();",
        "filters(chunk));",
    ),
    "a missing barrier of a warp": (
        "grouped_correlation",
        "            synchronise_warp();\n            write_rows(",
        "            write_rows(",
    ),
    "a swapped stage": ("grouped_correlation", "correlate(stage(number), ", "correlate(stage(number + 1), "),
    "a group too many under way": ("grouped_correlation", "wait_for_copies<1>", "wait_for_copies<2>"),
    "filters that are not turned round": ("grouped_correlation", "p.turned ? size - 1 - tap : tap", "tap"),
    "half of the last product not cleared": ("grouped_correlation", "if (count % 2)", "if (false)"),
    "a row of halo too few": (
        "grouped_filters",
        "cut.pieces * cut.staged, to,",
        "cut.pieces * cut.staged - cut.staged_columns, to,",
    ),
    "a missing barrier before the sums take the stages' place": (
        "grouped_filters",
        "            // All must be done with a stage before it is filled again.\n            synchronise();",
        "",
    ),
    "sums read before they are there": (
        "grouped_filters",
        "gather_sums();\n        synchronise();",
        "gather_sums();",
    ),
    "another stage's gradients": ("grouped_filters", "weigh(grads(turn), ", "weigh(grads(turn + 1), "),
}


def broken(directory, monkeypatch, header, right, wrong, sources):
    """Put kernels in place whose ``header`` is wrong in one respect; of the others, ``sources`` are rebuilt."""
    shutil.copytree(build.CSRC, directory / "csrc")
    file = directory / "csrc" / "cuda" / f"{header}.h"
    assert file.read_text().count(right) == 1
    file.write_text(file.read_text().replace(right, wrong))
    monkeypatch.setattr(library, "kernels", build.kernels(directory / "csrc", sources))


@pytest.mark.parametrize(
    ("fault", "engine"), [*((fault, False) for fault in FAULTS), *((fault, True) for fault in OF_BOXES)]
)
def test_a_depthwise_kernel_broken_on_purpose_is_caught(fault, engine, tmp_path, monkeypatch):
    broken(tmp_path, monkeypatch, "depthwise", *(OF_BOXES if engine else FAULTS)[fault], "depthwise_forward.cu")
    library.kernels.set_bulk_copies(engine)
    for layout in LAYOUTS:
        input, weight = torch.randn(1, 32, 130, 36).contiguous(memory_format=layout), torch.randn(1, 32, 1, 3, 3)
        with pytest.raises((RuntimeError, AssertionError), match=r"depthwise forward, block .*|not close"):
            torch.testing.assert_close(
                dynamic_conv2d(input, weight, groups=32), dynamic_conv2d(input, weight, groups=32, backend="reference")
            )


@pytest.mark.parametrize("fault", OF_GROUPED)
def test_a_grouped_kernel_broken_on_purpose_is_caught(fault, tmp_path, monkeypatch):
    source, right, wrong = OF_GROUPED[fault]
    header = "grouped" if "halo" in fault else source
    broken(tmp_path, monkeypatch, header, right, wrong, f"{source}.cu")
    # Contiguous images are not copied asynchronously.
    for layout in LAYOUTS[1:] if "under way" in fault else LAYOUTS:
        input = torch.randn(1, 16, 40, 33, dtype=torch.float16).contiguous(memory_format=layout)
        weight = torch.randn(1, 16, 8, 3, 3, dtype=torch.float16) / 8
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            agrees([input, weight], {"groups": 2}, TOLERANCE[torch.float16])
        assert caught.type is AssertionError or re.search("grouped .*, block ", str(caught.value))

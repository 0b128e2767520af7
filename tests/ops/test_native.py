"""What only the compiled kernels can get wrong, in each instruction set: threads, foreign memory, chunks."""

from __future__ import annotations

import ctypes
import mmap
import time

import pytest
import torch

from hamlet.ops import cross_scale_attention, dynamic_conv2d, pyramid_attention, use_backend
from tests.ops import dense

pytestmark = pytest.mark.usefixtures("every_instruction_set")

native = pytest.importorskip("hamlet._native", reason="there was no C++ compiler to build the native kernels with")
SENTINEL = 4096.0


@pytest.fixture(scope="module", params=native.instruction_sets())
def every_instruction_set(request):
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield
    native.use_instruction_set(before)


def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    outs = function(*leaves)
    outs = outs if isinstance(outs, list | tuple) else [outs]
    loss = sum(out.square().sum() for out in outs)
    return [*(out.detach() for out in outs), *torch.autograd.grad(loss, leaves)]


# Large enough that each is worth several threads.
def attention_call():
    query, key, value = torch.randn(2, 19, 13, 3, 12), torch.randn(2, 11, 17, 3, 12), torch.randn(2, 11, 17, 3, 20)
    radius, gate = torch.rand(2, 19, 13, 3) * 5, torch.randn(2, 19, 13, 3)
    return lambda *t: cross_scale_attention(*t[:3], radius=t[3], gate=t[4], max_radius=4.0), [
        *(query, key, value, radius, gate)
    ]


def single_plane_call():
    query, key = torch.randn(1, 33, 27, 1, 24), torch.randn(1, 40, 12, 1, 24)
    return lambda q, k: cross_scale_attention(q, k, k, radius=3.0, max_radius=3.0), [query, key]


def pyramid_call():
    levels = [torch.randn(3, side, side, 2, 16) for side in (17, 9)]
    ones = [[2.0, 1.0], [2.0, 1.0]]
    return lambda *t: pyramid_attention(t, t, t, radius=ones, max_radius=ones), levels


def depthwise_call():
    tensors = [torch.randn(5, 63, 29, 23), torch.randn(5, 63, 1, 3, 3), torch.randn(5, 63)]
    return lambda x, w, b: dynamic_conv2d(x, w, b, groups=63, dilation=[1, 2, 4], residual=True), tensors


def grouped_call():
    return lambda x, w: dynamic_conv2d(x, w, groups=2, stride=2), [
        torch.randn(8, 10, 53, 41),
        torch.randn(8, 6, 5, 3, 5),
    ]


def wide_groups_call():
    return lambda x, w: dynamic_conv2d(x, w, groups=2), [torch.randn(3, 16, 13, 11), torch.randn(3, 26, 8, 3, 3)]


@pytest.mark.parametrize(
    "make", [attention_call, single_plane_call, pyramid_call, depthwise_call, grouped_call, wide_groups_call]
)
def test_any_number_of_threads_gives_the_same_bits(make):
    call, tensors = make()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(gradients(call, *tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_sums_are_rounded_to_bfloat16_as_pytorch_rounds_them():
    image = torch.randn(1, 7, 61, 67).to(torch.bfloat16)
    image[0, 0, 0, :6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.38e38, -3.38e38, -0.0])
    sums_tie_or_overflow = torch.tensor([3.38e38, 0.0, 1 / 256, 1 / 512, -3.0, 1e-39, 1e4])
    bias = sums_tie_or_overflow.to(torch.bfloat16)
    with use_backend("native"):
        found = dynamic_conv2d(image, torch.ones(1, 7, 1, 1, 1, dtype=torch.bfloat16), bias, groups=7)
    expected = (image.float() + bias.float()[:, None, None]).to(torch.bfloat16)
    assert expected.isinf().sum() == 3
    assert torch.equal(found.isnan(), expected.isnan())
    assert (found.view(torch.int16)[found.isnan()] == 0x7FC0).all()  # c10::BFloat16's own, whatever NaN was computed
    assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


@pytest.fixture
def check_fences(monkeypatch):
    """Give every new tensor a fence of sentinels before and after; returns the fences' check."""
    blocks = []
    real = torch.empty

    def allocate(shape, dtype, memory_format=torch.contiguous_format):
        like = real(shape, dtype=dtype, device="meta", memory_format=memory_format)
        block = torch.full((like.numel() + 128,), SENTINEL, dtype=dtype)
        blocks.append(block)
        return block[64 : 64 + like.numel()].as_strided(like.shape, like.stride(), 64)

    def new_empty(self, shape, dtype=None):
        return allocate(shape, dtype or self.dtype)

    def empty_like(self, memory_format=torch.contiguous_format):
        return allocate(self.shape, self.dtype, memory_format)

    def empty(*shape, dtype=None, memory_format=torch.contiguous_format):
        return allocate(shape, dtype, memory_format)

    def new_zeros(self, shape, dtype=None):
        return allocate(shape, dtype or self.dtype).zero_()

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch, "empty", empty)

    def check():
        assert blocks
        for block in blocks:
            assert (block[:64] == SENTINEL).all()
            assert (block[-64:] == SENTINEL).all()

    return check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_nothing_is_written_beside_the_results(dtype, last, check_fences):
    for make in (attention_call, pyramid_call, depthwise_call, grouped_call, wide_groups_call):
        call, tensors = make()
        tensors = [tensor.to(dtype) for tensor in tensors]
        if last and tensors[0].ndim == 4:
            tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        gradients(call, *tensors)
    check_fences()


@pytest.fixture(params=[False, True], ids=["start", "end"])
def check_behind_walls(request):
    """Results and gradients of a function are the same where pages that nobody may read surround each tensor."""
    mprotect = getattr(ctypes.CDLL(None), "mprotect", None)
    if mprotect is None:
        pytest.skip("no pages can be walled off here")

    def walled(tensor):
        size, page = tensor.nbytes, mmap.PAGESIZE
        pages = -(-size // page)
        region = mmap.mmap(-1, (pages + 2) * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for wall in (start, start + (pages + 1) * page):
            assert mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0
        offset = page + (pages * page - size if request.param else 0)
        flat = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    def check(function, *tensors):
        def results(wall, grad=None):
            leaves = [wall(tensor).requires_grad_() for tensor in tensors]
            out = function(*leaves)
            grad = torch.randn_like(out) if grad is None else wall(grad)
            return [out, *torch.autograd.grad(out, leaves, grad)], grad

        with use_backend("native"):
            expected, grad = results(torch.clone)
            found, _ = results(walled, grad)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    return check


ALL_DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=lambda dtype: str(dtype)[6:]
)


@ALL_DTYPES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("per_group", [1, 2])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [(9, 7, 3, 1), (28, 28, 3, 1), (5, 13, 5, 1), (6, 6, 1, 1), (8, 11, 7, 1), (10, 9, 3, 2)],
)
def test_convolution_reads_nothing_beside_its_tensors(
    dtype, layout, per_group, height, width, kernel, stride, check_behind_walls
):
    image = torch.randn(2, 6 * per_group, height, width).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(2, 6, per_group, kernel, kernel).to(dtype), torch.randn(2, 6).to(dtype)
    check_behind_walls(lambda *t: dynamic_conv2d(*t, groups=6, dilation=[1, 2, 4], stride=stride), image, weight, bias)


@ALL_DTYPES
@pytest.mark.parametrize(("channels", "value_channels"), [(12, 5), (16, 33), (1, 1)])
def test_attention_reads_nothing_beside_its_tensors(dtype, channels, value_channels, check_behind_walls):
    query, key, value = (
        torch.randn(2, *grid, 3, width).to(dtype)
        for grid, width in (((5, 7), channels), ((6, 3), channels), ((6, 3), value_channels))
    )
    check_behind_walls(lambda *t: cross_scale_attention(*t, radius=1.5, max_radius=2.0), query, key, value)


@pytest.mark.parametrize("channels", [1, 5, 16, 17, 33])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 7), (7, 7)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_channels_last_of_any_width(channels, kernel, stride):
    check_convolution(channels, 1, 1, kernel, stride, torch.channels_last)


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(3, 5, 4), (2, 8, 8), (7, 3, 2), (1, 17, 20), (2, 2, 13)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_groups_of_any_width(groups, inputs, outputs, stride, layout, dtype):
    check_convolution(groups, inputs, outputs, (3, 3), stride, layout, dtype)


def check_convolution(groups, inputs, outputs, kernel, stride, layout, dtype=torch.float64):
    input = torch.randn(2, groups * inputs, 9, 7, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(2, groups * outputs, inputs, *kernel, dtype=dtype)
    bias = torch.randn(2, groups * outputs, dtype=dtype)
    call = {"groups": groups, "stride": stride, "dilation": 2, "extent": torch.tensor([[9, 7], [4, 5]])}
    got = gradients(lambda *t: dynamic_conv2d(*t, **call), input, weight, bias)
    want = gradients(lambda *t: dense.convolution(*t, **call), input.double(), weight.double(), bias.double())
    assert got[0].is_contiguous(memory_format=layout)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("channels", [1, 7, 8, 24, 40, 64, 100, 256])
def test_any_number_of_channels_a_head(channels):
    query, key = (torch.randn(1, side, 6, 2, channels, dtype=torch.float64) for side in (6, 5))
    value = torch.randn(1, 5, 6, 2, 300 - channels, dtype=torch.float64)
    call = {"radius": 1.7, "max_radius": 1.7}
    got = gradients(lambda *t: cross_scale_attention(*t, **call), query, key, value)
    want = gradients(lambda *t: dense.attention(*t, **call)[0], query, key, value)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_window_of_thousands_of_keys_goes_chunk_by_chunk():
    query, key = torch.randn(1, 9, 9, 1, 8, dtype=torch.float64) * 3, torch.randn(1, 50, 47, 1, 8, dtype=torch.float64)
    radius = torch.rand(1, 9, 9, 1, dtype=torch.float64) * 60
    call = {"max_radius": 60.0, "softness": 2.0}
    got = gradients(lambda q, k, r: cross_scale_attention(q, k, k, radius=r, **call), query, key, radius)
    want = gradients(lambda q, k, r: dense.attention(q, k, k, radius=r, **call)[0], query, key, radius)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_a_radius_that_is_no_number_spoils_its_query_alone():
    query, key = torch.randn(1, 5, 5, 1, 8), torch.randn(1, 5, 5, 1, 8)
    radius = torch.full((1, 5, 5, 1), 1.5)
    radius[0, 2, 2] = torch.nan
    out, lse = cross_scale_attention(query, key, key, radius=radius, max_radius=2.0, return_lse=True)
    assert out[0, 2, 2].isnan().all()
    assert lse[0, 2, 2].isnan().all()
    assert out.isnan().sum() == 8


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1, 1, 1, 1, 1, 1), "a tensor has at most 5 dimensions"),
        (torch.ones(1, 1, 1, 1, dtype=torch.int32), "no kernel takes tensors of DLPack's dtype 0 with 32 bits"),
        (torch.ones(1, 1, 1, 1, dtype=torch.complex64), "no kernel takes tensors of DLPack's dtype 5 with 64 bits"),
    ],
    ids=["dimensions", "int32", "complex64"],
)
def test_what_no_kernel_takes_is_refused(tensor, message):
    with pytest.raises(ValueError, match=message):
        native.convolution_forward(tensor, *[None] * 9, 1, 1, False, False, 1)


def test_integers_are_those_of_extents_and_dilations_alone():
    floats, integers = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no kernel takes tensors of DLPack's dtype 0 with 64 bits"):
        native.convolution_forward(integers, *[None] * 9, 1, 1, False, False, 1)
    for place in ("dilation", "extent"):
        last = (floats, None) if place == "dilation" else (integers, integers.int())
        with pytest.raises(ValueError, match="extents and dilations are int64"):
            native.convolution_forward(floats, floats, *[None] * 6, *last, 1, 1, False, False, 1)


def test_the_peak_counts_all_that_it_does():
    begin = time.perf_counter()
    operations = native.multiply_adds(2, 8)
    rate = operations / (time.perf_counter() - begin)
    assert operations == 8 * native.multiply_adds(1, 1)
    assert 1e8 < rate < 1e13


@pytest.mark.parametrize(("channels", "value_channels", "radius"), [(20, 40, 2.0), (72, 8, 30.0), (1, 100, 5.5)])
def test_bfloat16_is_as_exact_as_its_storage(channels, value_channels, radius):
    query, key = torch.randn(2, 9, 14, 2, channels), torch.randn(2, 27, 25, 2, channels)
    value, gate = torch.randn(2, 27, 25, 2, value_channels), torch.randn(2, 9, 14, 2)
    tensors = [tensor.bfloat16() for tensor in (query, key, value, gate)]

    def attend(query, key, value, gate):
        return cross_scale_attention(query, key, value, gate=gate, radius=radius, max_radius=radius)

    with use_backend("reference"):
        exact = gradients(attend, *(tensor.double() for tensor in tensors))
    for got, want in zip(gradients(attend, *tensors), exact, strict=True):
        # One rounding to eight bits is 1.7e-3 of a tensor's norm: of results, of weights, of what gradients begin with.
        assert (got.double() - want).norm() < 6e-3 * want.norm()


def test_what_is_not_finite_stays_in_its_windows_in_bfloat16():
    query, key, value = (torch.randn(1, 12, 11, 2, 32).bfloat16() for _ in range(3))
    spoilt_key, spoilt_value = key.clone(), value.clone()
    spoilt_key[0, 2, 3, 0], spoilt_value[0, 9, 8, 1] = torch.nan, torch.inf

    def attend(query, key, value):
        return cross_scale_attention(query, key, value, radius=2.0, max_radius=2.0)

    clean, spoilt = gradients(attend, query, key, value), gradients(attend, query, spoilt_key, spoilt_value)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(11), indexing="ij")
    far = [((y - row).abs().maximum((x - column).abs()) > reach) for row, column, reach in ((2, 3, 2), (9, 8, 2))]
    farther = [((y - row).abs().maximum((x - column).abs()) > reach) for row, column, reach in ((2, 3, 4), (9, 8, 4))]
    for i, (before, after) in enumerate(zip(clean, spoilt, strict=True)):
        # A key's gradient comes from the queries that reach it, which may reach the one that is not finite.
        for head, kept in enumerate(far if i < 2 else farther):
            assert torch.equal(before[0, :, :, head][kept], after[0, :, :, head][kept])

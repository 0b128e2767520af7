"""The Triton attention on a GPU: what the interpreter cannot show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hamlet.ops import cross_scale_attention, pyramid_attention
from tests.ops import dense

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FIXED = {"max_radius": 4.0, "backend": "triton"}


def grids(gpu, batch, query_grid, key_grid, heads, channels, dtype=torch.bfloat16):
    shapes = [(batch, *grid, heads, channels) for grid in (query_grid, key_grid, key_grid)]
    tensors = [torch.randn(shape, device=gpu, dtype=dtype, requires_grad=True) for shape in shapes]
    return *tensors, (4 * torch.rand(batch, *query_grid, heads, device=gpu)).requires_grad_()


def step(query, key, value, radius):
    out = cross_scale_attention(query, key, value, radius=radius, **FIXED)
    return out, *torch.autograd.grad(out, (query, key, value, radius), torch.ones_like(out))


@pytest.mark.parametrize("channels", [20, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sides", [(56, 28), (28, 28), (14, 56)], ids=["coarser keys", "equal", "finer keys"])
def test_error_is_at_most_twice_that_of_plain_pytorch(gpu, dtype, channels, sides):
    query_grid, key_grid = ((side, side) for side in sides)
    *tensors, radius = grids(gpu, 1, query_grid, key_grid, 2, channels, dtype)
    m = dense.ramp(query_grid, key_grid, radius.detach().cpu().double(), 4.0, 1.0).to(gpu)

    def plain(query, key, value):
        heads_first = [x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in (query, key, value)]
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=m.log().to(query.dtype))
        return out.transpose(1, 2).unflatten(1, query_grid)

    def results(function, tensors):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        out = function(*leaves)
        torch.manual_seed(1)
        return out, *torch.autograd.grad(out, leaves, torch.randn(out.shape, device=gpu, dtype=torch.float64).to(out))

    ours = results(lambda *leaves: cross_scale_attention(*leaves, radius=radius.detach(), **FIXED), tensors)
    theirs, exact = results(plain, tensors), results(plain, [x.double() for x in tensors])
    for got, other, want in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-6


def test_tf32_only_where_pytorch_allows_it(gpu, monkeypatch):
    *tensors, radius = grids(gpu, 1, (28, 28), (28, 28), 2, 64, torch.float32)
    exact = cross_scale_attention(*(x.double() for x in tensors), radius=radius, max_radius=4.0, backend="reference")

    def error():
        out = cross_scale_attention(*tensors, radius=radius, **FIXED)
        return ((out.double() - exact).norm() / exact.norm()).item()

    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert error() < 1e-6
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    assert error() < 1e-2


def test_same_bits_over_twenty_runs(gpu):
    tensors = grids(gpu, 2, (56, 56), (28, 28), 4, 32)
    first = step(*tensors)
    for _ in range(20):
        assert all(torch.equal(x, y) for x, y in zip(first, step(*tensors), strict=True))


def test_a_pyramid_is_the_sum_of_its_pairs(gpu):
    levels = [torch.randn(2, side, side, 4, 32, device=gpu, dtype=torch.bfloat16) for side in (56, 28, 14, 7)]
    bounds = [[min(4.0 * 2 ** (2 - j), 8.0) for j in range(4)] for _ in range(4)]
    outs = pyramid_attention(levels, levels, levels, radius=bounds, max_radius=bounds, backend="triton")
    for i, out in enumerate(outs):
        want = sum(
            cross_scale_attention(levels[i], key, key, radius=bound, max_radius=bound, backend="triton").float()
            for key, bound in zip(levels, bounds[i], strict=True)
        )
        torch.testing.assert_close(out.float(), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("pyramid", [False, True], ids=["single", "pyramid"])
def test_a_cuda_graph_replays_on_new_contents(gpu, pyramid):
    query, key, value, radius = (x.detach() for x in grids(gpu, 1, (28, 28), (14, 14), 4, 32))

    def call():
        if not pyramid:
            return cross_scale_attention(query, key, value, radius=radius, **FIXED)
        square = [[2.0, 2.0], [2.0, 2.0]]
        levels = ([query, key], [query, key], [query, value])
        return pyramid_attention(*levels, radius=square, max_radius=square, backend="triton")[0]

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    query.copy_(torch.randn_like(query))
    graph.replay()
    torch.testing.assert_close(out, call(), rtol=0, atol=0)


def test_torch_compile(gpu):
    tensors = grids(gpu, 1, (28, 28), (14, 14), 4, 32)

    @torch.compile(fullgraph=True)
    def attend(query, key, value, radius):
        return cross_scale_attention(query, key, value, radius=radius, **FIXED)

    out = attend(*tensors)
    got = out, *torch.autograd.grad(out, tensors, torch.ones_like(out))
    for one, other in zip(got, step(*tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_side_stream(gpu):
    tensors = grids(gpu, 1, (28, 28), (14, 14), 4, 32)
    want = step(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = step(*tensors)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_the_device_of_the_tensors_is_the_one_it_runs_on(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    tensors = grids(torch.device("cuda", 1), 1, (14, 14), (14, 14), 2, 32)
    out, *_ = step(*tensors)
    assert out.device.index == 1
    assert out.isfinite().all()


def test_memory_is_that_of_the_results_and_of_a_few_numbers_a_query(gpu):
    query, key, value, radius = grids(gpu, 8, (56, 56), (56, 56), 8, 32)
    step(query, key, value, radius)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step(query, key, value, radius)
    results_bytes = sum(x.numel() * x.element_size() for x in results)
    gradient_bytes = query.numel() * query.element_size()
    numbers_bytes = 4 * radius.numel() * radius.element_size()
    assert torch.cuda.max_memory_allocated() - before < results_bytes + gradient_bytes + numbers_bytes + 2**21


def test_offsets_beyond_32_bits(gpu):
    shape = (400, 112, 112, 8, 64)  # 2.6e9 elements, 5 GB in half precision
    if torch.cuda.get_device_properties(gpu).total_memory < 40 * 2**30:
        pytest.skip("takes 40 GiB of GPU memory")
    query = torch.randn(shape, device=gpu, dtype=torch.bfloat16).requires_grad_()
    fixed = {"radius": 2.0, "max_radius": 2.0, "backend": "triton"}
    out = cross_scale_attention(query, query, query, **fixed)
    (gradient,) = torch.autograd.grad(out, query, torch.ones_like(out))
    last = query[-1:].detach().clone().requires_grad_()
    own = cross_scale_attention(last, last, last, **fixed)
    assert torch.equal(out[-1:], own)
    torch.testing.assert_close(gradient[-1:], torch.autograd.grad(own, last, torch.ones_like(own))[0])

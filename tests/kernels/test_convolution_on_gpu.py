from __future__ import annotations

import pytest
import torch

from hamlet.ops import dynamic_conv2d, use_backend

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def triton_backend():
    with use_backend("triton"):
        yield


def tensors(gpu, dtype=torch.float32, *, batch=8, channels=256, side=28, per_group=1, kernel=3, channels_last=False):
    input = torch.randn(batch, channels, side, side, device=gpu, dtype=dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last)
    weight = torch.randn(batch, channels, per_group, kernel, kernel, device=gpu, dtype=dtype) / kernel
    return [input, weight, torch.randn(channels, device=gpu, dtype=dtype)]


def results(function, given, **arguments):
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = function(*leaves, **arguments)
    torch.manual_seed(1)
    d_out = torch.randn(out.shape, device=out.device).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, d_out)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("per_group", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_error_is_at_most_twice_that_of_the_reference(gpu, dtype, channels_last, stride, per_group, kernel):
    given = tensors(gpu, dtype, per_group=per_group, kernel=kernel, channels_last=channels_last)
    arguments = {"stride": stride, "dilation": [1, 2, 3, 4], "groups": 256 // per_group, "residual": stride == 1}

    def reference(*leaves, **arguments):
        return dynamic_conv2d(*leaves, **arguments, backend="reference")

    exact = results(reference, [tensor.double() for tensor in given], **arguments)
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours = results(dynamic_conv2d, given, **arguments)
    theirs = results(reference, given, **arguments)
    for got, other, want in zip(ours, theirs, exact, strict=True):
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-6


def test_float32_takes_tf32_where_pytorch_may(gpu):
    given = tensors(gpu, per_group=8)
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = results(dynamic_conv2d, given, groups=32)
    with torch.backends.cudnn.flags(allow_tf32=True):
        for got, want in zip(results(dynamic_conv2d, given, groups=32), exact, strict=True):
            assert (got - want).norm() <= 2e-3 * want.norm()


@pytest.mark.parametrize("per_group", [1, 8], ids=["depthwise", "grouped"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_have_the_same_bits_over_20_runs(gpu, per_group, dtype):
    given = tensors(gpu, dtype, per_group=per_group)
    dilation = torch.randint(1, 5, (8, 4), device=gpu)
    arguments = {"groups": 256 // per_group, "dilation": dilation, "max_dilation": 4}
    first = results(dynamic_conv2d, given, **arguments)
    for _ in range(19):
        again = results(dynamic_conv2d, given, **arguments)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_cuda_graph_reads_the_dilation_when_it_is_replayed(gpu):
    given = tensors(gpu)
    dilation = torch.ones(8, 4, dtype=torch.int64, device=gpu)
    arguments = {"groups": 256, "dilation": dilation, "max_dilation": 4}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        dynamic_conv2d(*given, **arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = dynamic_conv2d(*given, **arguments)
    dilation.fill_(3)
    graph.replay()
    torch.testing.assert_close(out, dynamic_conv2d(*given, groups=256, dilation=3))


def test_it_compiles_and_trains(gpu):
    given = tensors(gpu, torch.bfloat16, per_group=8)

    def function(*leaves):
        return dynamic_conv2d(*leaves, groups=32, dilation=[1, 2]).relu()

    compiled = torch.compile(function, fullgraph=True)
    for got, want in zip(results(compiled, given), results(function, given), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("per_group", [1, 8], ids=["depthwise", "grouped"])
def test_offsets_beyond_31_bits(gpu, channels_last, per_group):
    batch, channels, side = 9, 256, 1024
    if torch.cuda.get_device_properties(gpu).total_memory < 40 << 30:
        pytest.skip("three tensors of 4.5 GiB and their gradients do not fit on this GPU")
    format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.zeros(batch, channels, side, side, device=gpu, dtype=torch.bfloat16).contiguous(memory_format=format)
    input[-1].normal_()
    weight = torch.randn(batch, channels, per_group, 3, 3, device=gpu, dtype=torch.bfloat16)
    whole, last = ([input[b:].detach().requires_grad_(), weight[b:].detach().requires_grad_()] for b in (0, batch - 1))
    for leaves in (whole, last):
        out = dynamic_conv2d(*leaves, groups=channels // per_group)
        out[-1].backward(torch.ones_like(out[-1]))
        leaves.append(out)
    assert whole[0].numel() > 2**31
    assert torch.equal(whole[2][-1], last[2][-1])
    assert torch.equal(whole[0].grad[-1], last[0].grad[-1])
    torch.testing.assert_close(whole[1].grad[-1], last[1].grad[-1])


def test_memory_beyond_inputs_and_outputs_is_small(gpu):
    given = tensors(gpu, torch.bfloat16, batch=32, side=56)
    dynamic_conv2d(*given, groups=256)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = dynamic_conv2d(*given, groups=256)
    assert torch.cuda.max_memory_allocated() - before <= out.nbytes + 2**20


def test_tuning_gives_the_same_result(gpu, monkeypatch, tmp_path):
    given = tensors(gpu, torch.bfloat16, channels_last=True)
    expected = dynamic_conv2d(*given, groups=256)
    monkeypatch.setenv("HAMLET_AUTOTUNE", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    torch.testing.assert_close(dynamic_conv2d(*given, groups=256), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_tensors_of_another_device_than_the_current_one():
    given = tensors(torch.device("cuda:1"))
    expected = dynamic_conv2d(*given, groups=256, backend="reference")
    torch.testing.assert_close(dynamic_conv2d(*given, groups=256), expected)

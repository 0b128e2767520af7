from __future__ import annotations

import pytest
import torch

from hamlet.ops import dynamic_conv2d, use_backend
from hamlet.ops.cuda import library
from tests.kernels.test_convolution_on_gpu import DTYPES, results, tensors

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_the_device(gpu):
    if library.kernels is None:
        pytest.skip(str(library.why_missing()))
    with use_backend("cuda"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("per_group", [1, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9])
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
def test_results_have_the_same_bits_over_20_runs(gpu, dtype, per_group):
    given = tensors(gpu, dtype, per_group=per_group)
    arguments = {"groups": 256 // per_group, "dilation": torch.randint(1, 5, (8, 4), device=gpu), "max_dilation": 4}
    first = results(dynamic_conv2d, given, **arguments)
    for _ in range(19):
        again = results(dynamic_conv2d, given, **arguments)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("per_group", [1, 8], ids=["depthwise", "grouped"])
def test_a_cuda_graph_reads_the_dilation_when_it_is_replayed(gpu, per_group):
    given, groups = tensors(gpu, per_group=per_group), 256 // per_group
    dilation = torch.ones(8, 4, dtype=torch.int64, device=gpu)
    arguments = {"groups": groups, "dilation": dilation, "max_dilation": 4}
    dynamic_conv2d(*given, **arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = dynamic_conv2d(*given, **arguments)
    dilation.fill_(3)
    graph.replay()
    torch.testing.assert_close(out, dynamic_conv2d(*given, groups=groups, dilation=3))


def test_a_launch_that_fails_is_an_error(gpu):
    pixel = torch.ones(1, 1, 1, 1, device=gpu)
    with pytest.raises(RuntimeError, match="cudaSetDevice: cudaErrorInvalidDevice"):
        library.kernels.depthwise_forward(pixel, pixel, *[None] * 9, [1], 1, 1, False, False, False, 99, 0)

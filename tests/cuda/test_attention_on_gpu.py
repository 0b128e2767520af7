from __future__ import annotations

import pytest
import torch

from hamlet.ops import cross_scale_attention
from hamlet.ops.cuda import attention, library

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def built(gpu):
    if library.kernels is None:
        pytest.skip(str(library.why_missing()))


def tensors(gpu, sides, channels, dtype):
    """Query, key, value, radius and gate of two heads on square grids."""
    query, key = (torch.randn(2, side, side, 2, channels, device=gpu, dtype=dtype) for side in sides)
    radius, gate = torch.rand(2, 2, sides[0], sides[0], 2, device=gpu)
    return [query, key, torch.randn_like(key), 5 * radius, gate]


def results(given, backend):
    leaves = [x.detach().clone().requires_grad_() for x in given]
    query, key, value, radius, gate = leaves
    out = cross_scale_attention(query, key, value, radius=radius, gate=gate, max_radius=4.0, backend=backend)
    torch.manual_seed(1)
    d_out = torch.randn(out.shape, device=out.device, dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, d_out)]


@pytest.mark.parametrize("channels", attention.CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sides", [(56, 28), (28, 28), (14, 56)], ids=["coarser keys", "equal", "finer keys"])
def test_error_is_at_most_twice_that_of_the_triton_kernels(gpu, dtype, channels, sides):
    given = tensors(gpu, sides, channels, dtype)
    exact = results([x.double() for x in given], "reference")
    for got, other, want in zip(results(given, "cuda"), results(given, "triton"), exact, strict=True):
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, other))
        assert error <= 2 * allowed + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_have_the_same_bits_over_20_runs(gpu, dtype):
    given = tensors(gpu, (28, 28), 64, dtype)
    first = results(given, "cuda")
    for _ in range(19):
        again = results(given, "cuda")
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

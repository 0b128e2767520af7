"""What bench/ counts as necessary, and what it takes for right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.measure import backends
from bench.peers import compiler
from bench.peers.attention import Case, dense, exact
from bench.peers.compiler import compiled
from bench.peers.convolution import Case as Images


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("per_group", [1, 4])
def test_a_convolutions_work_is_of_the_taps_in_the_image(per_group, stride):
    case = Images(3, 16, 7, kernel=5, per_group=per_group, dilations=(1, 3), stride=stride)
    image, weight = torch.ones(1, 1, 7, 7), torch.ones(1, 1, 5, 5)
    taps = sum(float(F.conv2d(image, weight, stride=stride, padding=2 * d, dilation=d).sum()) for d in (1, 3))
    assert case.operations() == 2 * 3 * 8 * per_group * taps


def test_what_is_right_of_windows_is_dense_attention_with_its_gradients():
    case = Case(9, 5, 1.5, batch=2, heads=2, channels=4)
    tensors = [tensor.double().requires_grad_() for tensor in (*case.tensors(), case.radii(0, 1))]
    incoming = torch.randn_like(tensors[0])
    for given in (tensors[:3], tensors):
        found, right = (make(*given) for make in (exact(case), dense(case, torch.float64)))
        torch.testing.assert_close(found, right)
        for gradient, wanted in zip(
            *(torch.autograd.grad(out, given, incoming) for out in (found, right)), strict=True
        ):
            torch.testing.assert_close(gradient, wanted)


def test_a_peer_that_would_run_uncompiled_errs(monkeypatch):
    breaks = compiled(lambda x: (torch._dynamo.graph_break(), x)[1])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        breaks(torch.ones(2))
    monkeypatch.setattr(compiler, "MOST_VERSIONS", 1)
    doubled = compiled(lambda x: x + x)
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        doubled(torch.ones(3))


def test_the_first_backend_is_what_a_user_gets_who_names_none():
    assert backends.asked(["native", "reference"]) == {"HAMLET (native)": None, "HAMLET (reference)": "reference"}

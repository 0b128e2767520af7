from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.nn import CECM


def convolved(cecm: CECM, x: Tensor, weight: Tensor, dilations: list[int]) -> Tensor:
    """Norm(X + GroupConv(X, W)) by PyTorch's convolution, block by block."""
    planes = x.permute(0, 3, 1, 2)
    blocks = zip(planes.chunk(len(dilations), 1), weight.chunk(len(dilations)), dilations, strict=True)
    groups = cecm.groups // len(dilations)
    out = torch.cat([F.conv2d(p, w, padding=d, dilation=d, groups=groups) for p, w, d in blocks], 1)
    return F.layer_norm((planes + out).permute(0, 2, 3, 1), (16,))


@pytest.mark.parametrize("groups", [None, 4])
def test_without_context_it_is_a_dilated_group_convolution(groups: int | None) -> None:
    cecm = CECM(16, groups=groups, dilations=(1, 3), dynamic=False)
    x = torch.randn(2, 5, 7, 16)
    torch.testing.assert_close(cecm(x), convolved(cecm, x, cecm.kernels, [1, 3]), rtol=1e-4, atol=1e-5)


def test_kernels_are_made_for_each_image() -> None:
    cecm = CECM(16, dilations=(1, 2))
    assert cecm.context is not None
    assert cecm.generate is not None
    torch.nn.init.normal_(cecm.generate.get_parameter("2.weight"), std=0.2)
    x = torch.randn(2, 5, 7, 16)
    made = cecm.generate(cecm.context(x)).reshape(2, *cecm.kernels.shape)
    assert (made[0] - made[1]).abs().max() > 0.05
    for index in range(2):
        alone = x[index : index + 1]
        expected = convolved(cecm, alone, cecm.kernels + made[index], [1, 2])
        torch.testing.assert_close(cecm(x)[index : index + 1], expected, rtol=1e-4, atol=1e-5)


def test_the_context_knows_what_and_where() -> None:
    context = CECM(16).context
    assert context is not None
    x = torch.randn(1, 6, 6, 16)
    assert (context(x) - context(x.flip(1))).abs().max() > 1e-2
    assert (context(x) - context(x + torch.randn(16))).abs().max() > 1e-2
    # What the image shows, not how finely it was sampled.
    finer = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(context(x), context(finer), rtol=0, atol=0.2)


def test_content_chooses_each_blocks_dilation_and_the_choice_learns() -> None:
    cecm = CECM(16, dilations=(1, 2), dynamic=False, choose_dilation=True)
    assert cecm.choose is not None
    x = torch.randn(1, 7, 7, 16)
    with torch.no_grad():
        cecm.choose.weight.zero_()
        cecm.choose.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 0.0]))
    confidence = torch.tensor([1, 2.0]).sigmoid().repeat_interleave(8)[:, None, None, None]
    out = cecm(x)
    torch.testing.assert_close(out, convolved(cecm, x, cecm.kernels * confidence, [2, 1]), rtol=1e-4, atol=1e-5)
    out.square().mul(torch.randn(16)).sum().backward()
    assert cecm.choose.bias.grad is not None
    assert (cecm.choose.bias.grad.abs() > 0).all()


@pytest.mark.parametrize("switches", [{}, {"choose_dilation": True}, {"dynamic": False}])
def test_padding_changes_nothing(
    samples: list[list[Tensor]],
    padded: Callable[..., tuple[list[Tensor], list[Tensor]]],
    switches: dict[str, Any],
) -> None:
    cecm = CECM(16, dilations=(1, 2), **switches)
    levels, extents = padded(samples)
    found = cecm(levels[0], extents[0])
    for index, sample in enumerate(samples):
        h, w = sample[0].shape[1:3]
        torch.testing.assert_close(found[index, :h, :w], cecm(sample[0])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("switches", [{}, {"groups": 4}, {"dynamic": False}, {"choose_dilation": True}])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_every_parameter_learns(
    assert_learns: Callable[..., None], switches: dict[str, Any], size: tuple[int, int]
) -> None:
    cecm = CECM(16, **{"dilations": (1, 2), **switches})
    x = torch.randn(2, *size, 16)
    out = cecm(x)
    assert out.shape == x.shape
    assert_learns(cecm, [out])


def test_begins_close_to_the_identity() -> None:
    x = torch.randn(2, 14, 14, 64)
    assert F.cosine_similarity(CECM(64)(x).flatten(), x.flatten(), dim=0) > 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "groups: got 0"),
        ({"groups": 3}, "groups: got 3, expected a divisor of the width 16"),
        ({"dilations": (1, 2, 3)}, r"dilations: got \(1, 2, 3\)"),
        ({"dilations": (0, 1)}, r"dilations: got \(0, 1\)"),
        ({"dilations": ()}, r"dilations: got \(\)"),
    ],
)
def test_refuses_what_does_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CECM(16, **settings)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.nn import ACSA

STRIDES = (8, 16, 32)


def test_without_window_and_gate_one_level_is_plain_multi_head_attention() -> None:
    acsa = ACSA(16, (8,), heads=2, window=8 * 20.0, adaptive_radius=False, gated=False)
    x = torch.randn(2, 5, 7, 16)
    tokens = acsa.norm[0](x).flatten(1, 2)
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": acsa.project[0].weight,
            "in_proj_bias": acsa.project[0].bias,
            "out_proj.weight": acsa.out[0][0].weight * acsa.out[0][1].gamma[:, None],
            "out_proj.bias": acsa.out[0][0].bias * acsa.out[0][1].gamma,
        }
    )
    expected = x + attention(tokens, tokens, tokens, need_weights=False)[0].unflatten(1, (5, 7))
    torch.testing.assert_close(acsa([x]).levels[0], expected, rtol=1e-4, atol=1e-5)


def test_the_window_covers_the_same_part_of_the_image_at_every_level() -> None:
    acsa = ACSA(16, STRIDES, window=48.0)
    assert [bound * stride for bound, stride in zip(acsa.max_radius, STRIDES, strict=True)] == [48.0] * 3


def test_windows_begin_in_the_middle_and_gates_half_open(samples: list[list[Tensor]]) -> None:
    found = ACSA(16, STRIDES)(samples[0])
    assert 0.4 < found.mean_radius.item() < 0.6
    for i, level in enumerate(samples[0]):
        for j, bound in enumerate((6.0, 3.0, 1.5)):
            radius, gate = found.radius[i][j], found.gate[i][j]
            assert radius is not None
            assert gate is not None
            assert radius.shape == gate.shape == (*level.shape[:3], 4)
            assert radius.min() > 0.5
            assert radius.max() < bound
            assert (radius - (0.5 + bound) / 2).abs().max() < 0.2 * bound
            assert (gate - 0.5).abs().max() < 0.2
    assert found.radius[0][0] is not None
    assert found.radius[0][0].std() > 0


def test_the_mean_radius_follows_the_windows(samples: list[list[Tensor]]) -> None:
    acsa = ACSA(16, STRIDES)
    for bias, expected in ((-20.0, 0.0), (20.0, 1.0)):
        for level in range(3):
            torch.nn.init.constant_(acsa.get_parameter(f"share.linear.{level}.bias"), bias)
        assert acsa(samples[0]).mean_radius.item() == pytest.approx(expected, abs=1e-6)


def test_a_closed_gate_lets_nothing_in(samples: list[list[Tensor]]) -> None:
    acsa = ACSA(16, STRIDES)
    for level in range(3):
        torch.nn.init.constant_(acsa.get_parameter(f"gate.linear.{level}.bias"), -60.0)
    for level, (x, own) in enumerate(zip(samples[0], acsa(samples[0]).levels, strict=True)):
        bias, scale = acsa.get_parameter(f"out.{level}.0.bias"), acsa.get_parameter(f"out.{level}.1.gamma")
        torch.testing.assert_close(own, x + bias * scale)


@pytest.mark.parametrize("cross_scale", [True, False])
def test_levels_see_one_another_only_across_scales(samples: list[list[Tensor]], cross_scale: bool) -> None:
    levels = [level.requires_grad_() for level in samples[0]]
    acsa = ACSA(16, STRIDES, cross_scale=cross_scale)
    found = acsa(levels)
    found.levels[0].square().sum().backward()
    assert levels[0].grad is not None
    assert (levels[2].grad is not None and levels[2].grad.abs().max() > 0) == cross_scale
    assert (found.radius[0][2] is not None) == cross_scale


def test_padding_changes_nothing(
    samples: list[list[Tensor]], padded: Callable[..., tuple[list[Tensor], list[Tensor]]]
) -> None:
    acsa = ACSA(16, STRIDES)
    levels, extents = padded(samples)
    found = acsa(levels, extents)
    alone = [acsa(sample) for sample in samples]
    for index, single in enumerate(alone):
        for level, expected in enumerate(single.levels):
            h, w = expected.shape[1:3]
            torch.testing.assert_close(found.levels[level][index, :h, :w], expected[0], rtol=0, atol=1e-5)
    expected_mean = torch.stack([single.mean_radius for single in alone]).mean()
    torch.testing.assert_close(found.mean_radius, expected_mean)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"adaptive_radius": False},
        {"gated": False},
        {"cross_scale": False},
        {"adaptive_radius": False, "gated": False},
    ],
)
def test_every_parameter_learns(
    samples: list[list[Tensor]], assert_learns: Callable[..., None], switches: dict[str, Any]
) -> None:
    acsa = ACSA(16, STRIDES, **switches)
    found = acsa(samples[0])
    assert [own.shape for own in found.levels] == [level.shape for level in samples[0]]
    assert (found.gate[0][0] is None) == (not switches.get("gated", True))
    assert_learns(acsa, found.levels)


def test_the_budget_reaches_what_steers_the_windows(samples: list[list[Tensor]]) -> None:
    acsa = ACSA(16, STRIDES)
    acsa(samples[0]).mean_radius.backward()
    gradients = [parameter.grad for parameter in acsa.share.parameters()]
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients)


def test_autocast_keeps_the_residual_stream_and_the_radius_precise(samples: list[list[Tensor]]) -> None:
    acsa = ACSA(16, STRIDES)
    expected = acsa(samples[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = acsa(samples[0])
    assert found.radius[0][0] is not None
    assert found.radius[0][0].dtype == torch.float32
    for own, wanted in zip(found.levels, expected.levels, strict=True):
        assert own.dtype == torch.float32
        assert F.cosine_similarity(own.flatten(), wanted.flatten(), dim=0) > 0.999


def test_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads: got 3, expected a divisor of the width 16"):
        ACSA(16, STRIDES, heads=3)

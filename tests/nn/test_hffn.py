from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.nn import HFFN


def to_middle(level: Tensor, size: tuple[int, int]) -> Tensor:
    planes = level.permute(0, 3, 1, 2)
    return F.interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def test_switched_off_it_is_the_mean_of_the_transformed_levels(samples: list[list[Tensor]]) -> None:
    hffn = HFFN(16, 3, adaptive=False)
    fused, weights = hffn(samples[0])
    transformed = [to_middle(t(z), (3, 4)) for t, z in zip(hffn.transform, samples[0], strict=True)]
    torch.testing.assert_close(fused, sum(transformed) / 3, rtol=1e-4, atol=1e-5)
    assert (weights == 1 / 3).all()


def test_its_branches_begin_small(samples: list[list[Tensor]]) -> None:
    hffn = HFFN(16, 3)
    assert hffn.interact is not None
    for transform, level in zip(hffn.transform, samples[0], strict=True):
        whole = transform.layers[:3](level) @ transform.layers[3][0].weight.T
        torch.testing.assert_close(transform(level) - level, 0.05 * whole, rtol=1e-4, atol=1e-5)
    stacked = torch.randn(2, 3, 3, 16)
    changed = hffn.interact(stacked)[0] - stacked
    hffn.interact.out[1].gamma.data.fill_(1.0)
    torch.testing.assert_close(changed, 0.05 * (hffn.interact(stacked)[0] - stacked), rtol=1e-4, atol=1e-5)
    assert changed.abs().max() > 1e-3


def test_weights_are_a_softmax_that_the_content_chooses(samples: list[list[Tensor]]) -> None:
    hffn = HFFN(16, 3)
    fused, weights = hffn(samples[0])
    assert fused.shape == (1, 3, 4, 16)
    assert weights.shape == (1, 3, 4, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 4))
    assert weights.min() > 0
    assert weights.flatten(0, 2).std(0).min() > 0


def test_a_level_that_wins_all_weight_is_the_result(samples: list[list[Tensor]]) -> None:
    hffn = HFFN(16, 3)
    assert hffn.interact is not None
    with torch.no_grad():
        for name in ("out.0.weight", "out.0.bias", "weigh.1.weight"):
            hffn.interact.get_parameter(name).zero_()
        # The level whose first channel stands out most wins.
        hffn.interact.get_parameter("weigh.1.weight")[0, 0] = 100.0
    fused, weights = hffn(samples[0])
    aligned = torch.stack([to_middle(t(z), (3, 4)) for t, z in zip(hffn.transform, samples[0], strict=True)], 3)
    winner = F.layer_norm(aligned, (16,))[..., 0].argmax(-1)
    sure = weights.max(-1).values > 0.9999
    assert sure.sum() >= 8
    expected = aligned.gather(3, winner[..., None, None].expand(-1, -1, -1, 1, 16)).squeeze(3)
    torch.testing.assert_close(fused[sure], expected[sure], rtol=0, atol=1e-2)


def test_levels_interact(samples: list[list[Tensor]]) -> None:
    hffn = HFFN(16, 3)
    assert hffn.interact is not None
    stacked = torch.randn(2, 3, 3, 16, requires_grad=True)
    hffn.interact(stacked)[0][..., 0, :].sum().backward()
    assert stacked.grad is not None
    assert stacked.grad[..., 2, :].abs().max() > 0


def test_padding_changes_nothing(
    samples: list[list[Tensor]], padded: Callable[..., tuple[list[Tensor], list[Tensor]]]
) -> None:
    hffn = HFFN(16, 3)
    fused, weights = hffn(*padded(samples))
    for index, sample in enumerate(samples):
        expected, expected_weights = hffn(sample)
        h, w = expected.shape[1:3]
        torch.testing.assert_close(fused[index, :h, :w], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(weights[index, :h, :w], expected_weights[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_parameter_learns(
    samples: list[list[Tensor]], assert_learns: Callable[..., None], adaptive: bool, levels: int
) -> None:
    hffn = HFFN(16, levels, adaptive=adaptive)
    assert_learns(hffn, hffn(samples[0][:levels])[:1])


def test_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads: got 5"):
        HFFN(16, 3, heads=5)

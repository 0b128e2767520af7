from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hamlet.nn import GRGM


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (2, 9)])
@pytest.mark.parametrize("attention_pool", [True, False])
def test_descriptors_have_length_one_and_weights_sum_to_one(size: tuple[int, int], attention_pool: bool) -> None:
    grgm = GRGM(16, 24, attention_pool=attention_pool)
    descriptors, pooling = grgm(torch.randn(3, *size, 16))
    assert descriptors.shape == (3, 24)
    assert pooling.shape == (3, *size)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(pooling.sum((1, 2)), torch.ones(3))


def test_without_attention_all_pixels_weigh_alike() -> None:
    _, pooling = GRGM(16, 24, attention_pool=False)(torch.randn(2, 4, 5, 16))
    torch.testing.assert_close(pooling, torch.full((2, 4, 5), 1 / 20))


def test_attention_goes_where_the_score_is() -> None:
    grgm = GRGM(16, 24).eval()
    assert grgm.score is not None
    x = torch.randn(1, 4, 5, 16)
    normed = torch.nn.functional.layer_norm(x[0, 2, 3], (16,))
    torch.nn.init.zeros_(grgm.score.weight)
    with torch.no_grad():
        grgm.score.weight += 4 * normed
    descriptor, pooling = grgm(x)
    assert pooling[0, 2, 3] > 0.999
    alone, _ = grgm(x[:, 2:3, 3:4])
    torch.testing.assert_close(descriptor, alone, rtol=0, atol=1e-2)


def test_the_order_of_the_pixels_does_not_matter() -> None:
    grgm, x = GRGM(16, 24), torch.randn(2, 4, 5, 16)
    shuffled = x.flatten(1, 2)[:, torch.randperm(20)].unflatten(1, (4, 5))
    torch.testing.assert_close(grgm(x)[0], grgm(shuffled)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention_pool", [True, False])
def test_padding_changes_nothing(
    samples: list[list[Tensor]],
    padded: Callable[..., tuple[list[Tensor], list[Tensor]]],
    attention_pool: bool,
) -> None:
    grgm = GRGM(16, 24, attention_pool=attention_pool).eval()
    levels, extents = padded(samples)
    descriptors, pooling = grgm(levels[0], extents[0])
    for index, sample in enumerate(samples):
        expected, expected_pooling = grgm(sample[0])
        h, w = sample[0].shape[1:3]
        torch.testing.assert_close(descriptors[index], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(pooling[index, :h, :w], expected_pooling[0], rtol=0, atol=1e-6)
        assert pooling[index, h:].abs().sum() + pooling[index, :, w:].abs().sum() == 0


@pytest.mark.parametrize("attention_pool", [True, False])
def test_every_parameter_learns(assert_learns: Callable[..., None], attention_pool: bool) -> None:
    grgm = GRGM(16, 24, attention_pool=attention_pool)
    assert_learns(grgm, grgm(torch.randn(3, 5, 7, 16))[:1])


def test_refuses_an_empty_descriptor() -> None:
    with pytest.raises(ValueError, match="descriptor_dim: got 0"):
        GRGM(16, 0)


def test_refuses_to_train_on_a_single_image() -> None:
    grgm, x = GRGM(16, 24), torch.randn(1, 4, 5, 16)
    with pytest.raises(ValueError, match="x: got a batch of 1 in training mode, expected 2 or more"):
        grgm(x)
    assert grgm.eval()(x)[0].norm().item() == pytest.approx(1)

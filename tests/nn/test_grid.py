from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hamlet.nn import grid


def interpolate(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    planes = x.permute(0, 3, 1, 2)
    return F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(5, 7), (12, 15), (3, 2), (1, 1), (9, 3)])
def test_resample_is_antialiased_bilinear_interpolation(size: tuple[int, int]) -> None:
    x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(grid.resample(x, size), interpolate(x, size), rtol=0, atol=1e-6)


def test_resample_of_a_padded_sample_is_that_of_the_sample_alone_and_zero_outside() -> None:
    x = torch.randn(2, 6, 7, 3)
    extent, new_extent = torch.tensor([[6, 4], [3, 7]]), torch.tensor([[2, 5], [4, 3]])
    filled = x.masked_fill(~grid.valid(extent, 6, 7)[..., None], torch.nan)
    found = grid.resample(filled, (4, 5), extent, new_extent)
    for index, ((h, w), (nh, nw)) in enumerate(zip(extent.tolist(), new_extent.tolist(), strict=True)):
        alone = interpolate(x[index : index + 1, :h, :w], (nh, nw))
        torch.testing.assert_close(found[index, :nh, :nw], alone[0], rtol=0, atol=1e-5)
        assert found[index].abs().sum() == pytest.approx(found[index, :nh, :nw].abs().sum().item())


def test_mean_and_its_gradient_ignore_the_padding() -> None:
    x = torch.full((1, 2, 3, 1), torch.nan)
    x[0, 0, :2, 0] = torch.tensor([2.0, 6.0])
    x.requires_grad_()
    mean = grid.mean(x, torch.tensor([[1, 2]]))
    assert mean.item() == 4
    mean.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.5, 0.5, 0, 0, 0, 0]

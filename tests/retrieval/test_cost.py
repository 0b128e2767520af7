from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.retrieval.cost import measure_cost, repeat
from hamlet.retrieval.parts import measure_parts


class Known(nn.Module):
    """A model whose cost one can count: a convolution, and temporaries of four and eight megabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.grad_modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.grad_modes.append(torch.is_grad_enabled() or self.training)
        first = images.new_empty(1_000_000)
        del first
        second = images.new_empty(1_000_000)
        third = second.repeat(2)
        del second, third
        return self.convolution(images).mean(dim=(2, 3))


def test_counts(capfd: pytest.CaptureFixture[str]) -> None:
    model = Known().train()
    cost = measure_cost(model, (10, 8))
    assert cost.parameters == 5 * 3 * 9
    assert cost.flops == 2 * 5 * 3 * 9 * 10 * 8
    assert cost.descriptor_bytes == 5 * 4
    assert 0 < cost.latency_ms <= cost.latency_p90_ms
    # Four and eight megabytes stand together; the first four are gone by then.
    assert cost.peak_memory_bytes == pytest.approx(12e6, rel=0.01)
    assert model.training
    assert not any(model.grad_modes)
    assert capfd.readouterr() == ("", "")


def test_grows_with_the_picture() -> None:
    small, large = (measure_cost(nn.Sequential(Known()), side) for side in (8, 16))
    assert large.flops == 4 * small.flops


class Looking(nn.Module):
    """Four heads of two channels that look from 80 pixels to 80."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.new_ones(1, 4, images[0, 0].numel(), 2)
        return F.scaled_dot_product_attention(pixels, pixels, pixels)[:, 0, 0]


def test_the_fused_attention_of_the_cpu_is_not_free() -> None:
    # Queries with keys, then weights with values: each pair takes two channels, a multiply and an add.
    pairs = 4 * 80 * 80
    assert measure_cost(Looking(), (10, 8)).flops == 2 * pairs * 2 + 2 * pairs * 2
    (part,) = measure_parts(nn.Sequential(Looking()), (10, 8))
    assert part.flops == 8 * pairs


@pytest.mark.parametrize(("took", "runs"), [(3.0, 5), (0.3, 7), (0.001, 50)])
def test_a_pass_is_repeated_for_two_seconds(took: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hamlet.retrieval.cost._SECONDS", 2.0)
    assert repeat(lambda: took, float) == [took] * runs


def test_bad_size() -> None:
    with pytest.raises(ValueError, match="image_size: got 0 x 8"):
        measure_cost(Known(), (0, 8))

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from hamlet.retrieval.cost import measure_cost
from hamlet.retrieval.parts import measure_parts


class Greedy(nn.Module):
    """Keeps one megabyte, and has four more for a while."""

    def forward(self, images: Tensor) -> Tensor:
        scratch = images.new_empty(1_000_000)
        del scratch
        return images.new_zeros(250_000)


class Slow(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.1)
        return images


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, kernel, padding="same", bias=False) for kernel in (1, 3))
        self.greedy, self.slow, self.absent = Greedy(), Slow(), nn.ModuleList()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        for convolution in self.convolutions:
            images = convolution(images)
        self.greedy(images)
        return self.slow(self.slow(images)).mean(dim=(2, 3)) * self.scale


def test_each_part_is_charged_with_its_own() -> None:
    model = Model().train()
    parts = {part.name: part for part in measure_parts(model, (10, 8))}
    assert list(parts) == ["convolutions", "greedy", "slow"]
    assert parts["convolutions"].parameters == 9 + 81
    assert parts["convolutions"].flops == 2 * (9 + 81) * 10 * 8
    # Both convolutions' results, 3 x 10 x 8 floats each.
    assert parts["convolutions"].activation_bytes == 2 * 3 * 10 * 8 * 4
    assert parts["greedy"].flops == 0
    assert parts["greedy"].activation_bytes == pytest.approx(1e6, rel=0.01)
    assert parts["greedy"].peak_memory_bytes == pytest.approx(4e6, rel=0.01)
    # Called twice, 100 ms each; on a busy machine the others may take a part of that.
    assert 200 <= parts["slow"].latency_ms <= parts["slow"].latency_p90_ms
    assert parts["convolutions"].latency_ms < 100
    assert model.training


def test_parts_make_up_the_whole() -> None:
    model = Model()
    parts, whole = measure_parts(model, 9), measure_cost(model, 9)
    assert sum(part.flops for part in parts) == whole.flops
    assert sum(part.parameters for part in parts) == whole.parameters - 1
    assert max(part.peak_memory_bytes for part in parts) <= whole.peak_memory_bytes


def test_the_model_is_left_as_it_was() -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = nn.Sequential(nn.Identity(), Failing())
    with pytest.raises(RuntimeError, match="no"):
        measure_parts(model, 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_bad_size() -> None:
    with pytest.raises(ValueError, match="image_size: got 0 x 8"):
        measure_parts(Model(), (0, 8))

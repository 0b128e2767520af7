"""Small pyramids, padded or not, and the checks that every part of the model passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

SIZES = [[(5, 7), (3, 4), (2, 2)], [(8, 3), (4, 2), (2, 1)], [(1, 1), (1, 1), (1, 1)]]
"""Odd sizes of three levels, one list a sample."""


@pytest.fixture
def samples() -> list[list[Tensor]]:
    """Three samples, each of three levels (1, h, w, 16) of its own sizes."""
    return [[torch.randn(1, *size, 16) for size in sizes] for sizes in SIZES]


@pytest.fixture
def padded() -> Callable[[list[list[Tensor]]], tuple[list[Tensor], list[Tensor]]]:
    """Join samples into one batch a level, its padding filled with large numbers, and the extents."""

    def join(samples: list[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        levels, extents = [], []
        for maps in zip(*samples, strict=True):
            height, width = (max(m.shape[axis] for m in maps) for axis in (1, 2))
            batch = torch.full((len(maps), height, width, maps[0].shape[3]), 1e3)
            for row, own in zip(batch, maps, strict=True):
                row[: own.shape[1], : own.shape[2]] = own[0]
            levels.append(batch)
            extents.append(torch.tensor([m.shape[1:3] for m in maps]))
        return levels, extents

    return join


@pytest.fixture
def assert_learns() -> Callable[[nn.Module, Sequence[Tensor]], None]:
    """Every parameter gets a finite gradient that is not zero, from a random projection of the outputs."""

    def check(part: nn.Module, outputs: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
        assert isinstance(loss, Tensor)
        loss.backward()
        dead = [
            name
            for name, parameter in part.named_parameters()
            if parameter.grad is None or not parameter.grad.isfinite().all() or parameter.grad.abs().max() == 0
        ]
        assert not dead

    return check

"""A small model with what retrieval asks of one, and pictures to describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.retrieval.browser import NoBrowser, find_or_install


@dataclass(frozen=True)
class Config:
    descriptor_dim: int = 12


class Descriptor(nn.Module):
    """Pooled colours and edges under a linear layer: quick, and the same for an image alone or in a batch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.name, self.config, self.descriptor_dim = "double", Config(), Config.descriptor_dim
        generator = torch.Generator().manual_seed(seed)
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, self.descriptor_dim)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            images = list(images)
        pooled = [self.convolution(image[None]).relu().mean(dim=(2, 3)) for image in images]
        return nn.functional.normalize(self.linear(torch.cat(pooled)), dim=1)


@pytest.fixture
def model() -> Descriptor:
    return Descriptor()


@pytest.fixture
def make_model() -> Callable[[int], Descriptor]:
    return Descriptor


@pytest.fixture(scope="session")
def write_pictures() -> Callable[[Path, int], list[str]]:
    """Write `count` different pictures of different sizes below a folder, and return their names in order."""

    def write(folder: Path, count: int) -> list[str]:
        names = []
        for number in range(count):
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            name = f"{number % 3}/{number:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coarse).resize((24 + number % 5, 20)).save(folder / name)
            names.append(name)
        return sorted(names)

    return write


@pytest.fixture(scope="session")
def browser() -> str:
    try:
        return find_or_install()
    except NoBrowser as reason:
        pytest.skip(str(reason))

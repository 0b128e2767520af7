"""A small model with all that makes resuming hard (dropout, batch norm), a training set, a teacher and a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models import Maps
from hamlet.settings import from_plain, override
from hamlet.training import Recipe, TeacherCache, train

CLASSES = 6


@dataclass(frozen=True)
class TinyConfig:
    width: int = 8
    dropout: float = 0.2
    normalise: bool = True


class Tiny(nn.Module):
    """Two levels of features, one learnt 'radius', unit descriptors of length 6."""

    name = "tiny"
    descriptor_dim = 6

    def __init__(self, config: TinyConfig = TinyConfig()) -> None:
        super().__init__()
        self.config = config
        self.shallow = nn.Conv2d(3, config.width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(config.width) if config.normalise else nn.Identity()
        self.deep = nn.Conv2d(config.width, 2 * config.width, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.width, self.descriptor_dim)
        self.radius = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, return_maps: bool = False) -> Any:
        shallow = self.norm(self.shallow(images - 0.5)).relu()
        deep = self.deep(shallow).relu()
        levels = [shallow.mean((2, 3)), deep.mean((2, 3))]
        descriptors = F.normalize(self.head(self.dropout(levels[1])).float(), dim=1)
        if not return_maps:
            return descriptors
        return descriptors, Maps([], [], None, deep.mean(1), None, None, levels, self.radius.sigmoid())


class Blobs:
    """Noisy pictures of one colour a class, four samples a class; classes pair up into three coarser ones."""

    def __init__(self, spoilt: int | None = None) -> None:
        self.labels = [sample // 4 for sample in range(4 * CLASSES)]
        self.hierarchy = [[label // 2 for label in self.labels]]
        self.ids = [f"{sample:02}.jpg" for sample in range(len(self.labels))]
        self.colors = torch.rand(CLASSES, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        self.spoilt = spoilt
        self.taken = 0
        self.fails_at: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        self.taken += 1
        if self.taken == self.fails_at:
            raise OSError("the disk is gone")
        sample, seed, size = key
        noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
        view = 0.7 * self.colors[self.labels[sample]] + 0.3 * noise
        return view * torch.nan if sample == self.spoilt else view


def teacher() -> TeacherCache:
    generator = torch.Generator().manual_seed(1)
    ids = tuple(reversed(Blobs().ids))
    embeddings, captions = torch.randn(2, len(ids), 5, generator=generator)
    prototypes = torch.randn(CLASSES, 5, generator=generator)
    return TeacherCache(ids, embeddings, prototypes, captions, logit_scale=5.0)


def recipe(*overrides: str) -> Recipe:
    """All losses, two stages, curriculum by running loss."""
    weights = {"distillation": 0.5, "consistency": 0.1, "hierarchy": 1.0, "coarse": 0.2, "budget": 0.1}
    plain = {
        "steps": 20,
        "batch_size": 6,
        "image_size": 8,
        "checkpoint_every": 3,
        "model": {"name": "tiny"},
        "optimizer": {"lr": 0.02, "warmup": 2},
        "loss": {"margin": 10.0, "scale": 10.0, "distilled_levels": [-1]},
        "curriculum": {"difficulty": "loss", "start": 0.3, "until": 0.6},
        "stages": [{"until": 0.4, "alpha": 0.0, **weights}, {"temperature": [4.0, 1.0], **weights}],
    }
    return from_plain(Recipe, override(plain, overrides))


def make(config: TinyConfig | None = None) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return Tiny(config or TinyConfig())


def main(out: str, *overrides: str) -> None:
    """Train with a recipe's overrides, "plain" for a model without dropout and batch norm, and "stop_after=N"."""
    plain = TinyConfig(dropout=0.0, normalise=False) if "plain" in overrides else TinyConfig()
    stop = [int(each.partition("=")[2]) for each in overrides if each.startswith("stop_after=")]
    settings = recipe(*(each for each in overrides if each != "plain" and not each.startswith("stop_after=")))
    taught = teacher() if any(stage.distillation for stage in settings.stages) else None
    train(
        make(plain),
        settings,
        Blobs(),
        out=Path(out),
        teacher=taught,
        progress=False,
        stop_after=stop[0] if stop else None,
    )

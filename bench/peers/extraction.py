"""Descriptors as a script of a few lines makes them: timm's backbone, GeM, one picture after the other."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

EXPONENT, LEAST = 3.0, 1e-6


class GeM(nn.Module):
    """The generalised mean of a backbone's last map, L2-normalised: (1, 3, H, W) to (1, channels)."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(-1,))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(self.backbone.pretrained_cfg[name])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        [found] = self.backbone((images - self.mean) / self.std)
        return F.normalize(found.clamp(min=LEAST).pow(EXPONENT).mean((2, 3)).pow(1 / EXPONENT))


def describe(model: nn.Module, paths: list[Path], longest: int) -> list[Tensor]:
    like = next(model.parameters())
    rows = []
    for path in paths:
        with Image.open(path) as picture:
            picture.thumbnail((longest, longest))
            pixels = to_tensor(picture.convert("RGB"))
        with torch.inference_mode():
            rows.append(model(pixels[None].to(like)))
    return [torch.cat(rows)]

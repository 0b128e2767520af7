"""The plain descriptor that HAMLET is compared with: a backbone's last map, generalised-mean pooled and whitened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models.maps import Maps
from hamlet.nn import grid
from hamlet.nn.hfe import HFE, Images

LEAST = 1e-6
"""Features are raised to this before the power, whose gradient is infinite at 0."""


@dataclass(frozen=True)
class GemConfig:
    """What a GeM baseline is made of.

    Args:
        backbone: timm's name.
        descriptor_dim: length of the descriptor.
        power: the power p to begin with; it is learnt.
    """

    backbone: str
    descriptor_dim: int = 512
    power: float = 3.0


class Gem(nn.Module):
    """A backbone's last feature map, pooled by its generalised mean, whitened by a linear layer, normalised.

    Example:
        >>> model = Gem(GemConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2018).
    """

    name: str

    def __init__(self, config: GemConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__()
        if config.descriptor_dim < 1:
            raise ValueError(f"descriptor_dim: got {config.descriptor_dim}, expected at least 1")
        if not config.power > 0:
            raise ValueError(f"power: got {config.power}, expected > 0")
        self.config = config
        self.descriptor_dim = config.descriptor_dim
        self.hfe = HFE(config.backbone, (-1,), pretrained)
        self.power = nn.Parameter(torch.tensor(float(config.power)))
        self.whiten = nn.Linear(self.hfe.channels[0], config.descriptor_dim)

    @overload
    def forward(self, images: Images, return_maps: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, images: Images, return_maps: Literal[True]) -> tuple[Tensor, Maps]: ...
    def forward(self, images: Images, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Describe images; arguments and results as :meth:`hamlet.models.hamlet.Hamlet.forward`.

        The pooling map is each pixel's share of what is pooled, averaged over the channels. There are no windows, gates
        or fusion: their maps are empty, and ``mean_radius`` is 0.
        """
        (features,), extents = self.hfe(images)
        extent = None if extents is None else extents[0]
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        powered = grid.zero_padding(grid.zero_padding(features, extent).clamp(min=LEAST) ** self.power, extent)
        pooled = grid.mean(powered, extent) ** (1 / self.power)
        vector = self.whiten(pooled)
        descriptors = F.normalize(vector.to(torch.promote_types(vector.dtype, torch.float32)), dim=1)
        if not return_maps:
            return descriptors
        return descriptors, Maps(
            radius=[],
            gate=[],
            fusion_weights=None,
            pooling=(powered / powered.sum((1, 2), keepdim=True)).mean(-1),
            extents=extents,
            pooling_extent=extent,
            level_embeddings=[pooled],
            mean_radius=descriptors.new_zeros(()),
        )

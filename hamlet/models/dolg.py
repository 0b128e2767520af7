"""DOLG: what local features add to the global one, orthogonally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import PixelNorm, check_power, generalised_mean, whitening
from hamlet.nn import grid


@dataclass(frozen=True)
class DolgConfig(ModelConfig):
    """What a DOLG is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        dilations: of the local branch's parallel convolutions.
        power: p of the global branch's generalised mean, which stays as it is.
    """

    dilations: tuple[int, ...] = (6, 12, 18)
    power: float = 3.0


class Dolg(Model):
    """A global vector g of the backbone's last map and local features f of the one before, fused orthogonally.

    g = W GeM_3(X_4), in as many channels as X_3 has; f = Local(X_3); the descriptor is the normalised projection of the
    mean over the pixels of :func:`orthogonal_fusion`. Ours: the backbone's channels; that the pyramid has no 1x1 branch
    beside its dilated convolutions and its mean; and that each branch is rectified before they are joined.

    Example:
        >>> model = Dolg(DolgConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Yang, He, Fan, Shi, Xue, Li, Ding, Huang, "DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion of
    Local and Global Features" (ICCV 2021).
    """

    def __init__(self, config: DolgConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-2, -1), pretrained)
        channels, deepest = self.hfe.channels
        self.power = check_power(config.power)
        self.local = _Local(channels, config.dilations)
        self.project = whitening(deepest, channels)
        self.whiten = whitening(2 * channels, config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        pooled, _ = generalised_mean(features[1], self.power, extent_of(extents, 1))
        local, attention = self.local(grid.zero_padding(features[0], extent), extent)
        fused = orthogonal_fusion(local.to(pooled.dtype), self.project(pooled).to(pooled.dtype))
        attention = grid.zero_padding(attention, extent).squeeze(-1)
        share = attention / attention.sum((1, 2), keepdim=True)
        embeddings = [grid.mean(local, extent), pooled]
        return unit(self.whiten(grid.mean(fused, extent))), Maps.plain(share, 0, extents, embeddings)


def orthogonal_fusion(local: Tensor, whole: Tensor) -> Tensor:
    """[g, f - (f . g / |g|^2) g] at each pixel: the global vector, and what is orthogonal to it in the local feature.

    Args:
        local: f, (B, H, W, C).
        whole: g, (B, C).

    Returns:
        (B, H, W, 2 C).

    Example:
        >>> orthogonal_fusion(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[2.0, 0.0]]))
        tensor([[[[2., 0., 0., 4.]]]])
    """
    whole = whole[:, None, None]
    along = (local * whole).sum(-1, keepdim=True)
    length = whole.square().sum(-1, keepdim=True).clamp(min=torch.finfo(whole.dtype).tiny)
    return torch.cat([whole.expand_as(local), local - along / length * whole], -1)


class _Local(nn.Module):
    """The local branch: a pyramid of dilated convolutions and a global mean, then features weighed by attention."""

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations: got {tuple(dilations)}, expected one or more numbers >= 1")
        reduced = max(1, channels // 2)
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, reduced, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.around = nn.Linear(channels, reduced)
        self.join = nn.Linear((len(dilations) + 1) * reduced, channels)
        self.features = nn.Linear(channels, channels)
        self.norm = PixelNorm(channels)
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor, extent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Local features and their attention, (B, H, W, C) and (B, H, W, 1), of x that is 0 in the padding."""
        planes = x.permute(0, 3, 1, 2)
        branches = [convolve(planes).permute(0, 2, 3, 1) for convolve in self.dilated]
        around = self.around(grid.mean(x, extent))[:, None, None].expand(*x.shape[:3], -1)
        joined = self.join(torch.cat([*(branch.relu() for branch in branches), around.relu()], -1)).relu()
        features = self.norm(self.features(joined), extent)
        attention = F.softplus(self.score(features.relu()))
        return F.normalize(features, dim=-1) * attention, attention

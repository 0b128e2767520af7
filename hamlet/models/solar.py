"""SOLAR: features revised by second-order attention, then pooled by their generalised mean."""

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
from hamlet.nn.branch import branch_end

REDUCTION = 2


@dataclass(frozen=True)
class SolarConfig(ModelConfig):
    """What a SOLAR is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        power: the power p to begin with; it is learnt.
    """

    power: float = 3.0


class Solar(Model):
    """Second-order attention on the backbone's last map, a generalised mean, a whitening.

    Ours: the attention stands behind the last stage alone, the paper's best model has another before it; and there is
    no second-order similarity loss, as all methods are trained by one loop.

    Example:
        >>> model = Solar(SolarConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Ng, Balntas, Tian, Mikolajczyk, "SOLAR: Second-Order Loss and Attention for Image Retrieval" (ECCV 2020).
    """

    def __init__(self, config: SolarConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        channels = self.hfe.channels[0]
        self.attention = SecondOrderAttention(channels)
        self.power = nn.Parameter(torch.tensor(float(check_power(config.power))))
        self.whiten = whitening(channels, config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = self.attention(grid.zero_padding(features[0], extent), extent)
        pooled, share = generalised_mean(x, self.power, extent)
        return unit(self.whiten(pooled)), Maps.plain(share, 0, extents, [pooled])


class SecondOrderAttention(nn.Module):
    """F + psi(softmax(q k^T / sqrt(d)) v): every pixel revised by all others, as much as they correlate with it.

    q and k are F in d = C / 2 channels, batch-normalised and rectified; v is F in as many channels; psi, which leads
    back to C channels, begins at zero, so the module begins as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(1, channels // REDUCTION)
        self.query, self.key, self.value = (nn.Linear(channels, reduced) for _ in range(3))
        self.query_norm, self.key_norm = PixelNorm(reduced), PixelNorm(reduced)
        self.out = branch_end(reduced, channels)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """Revise (B, H, W, C), finite in the padding too."""
        query = self.query_norm(self.query(x), extent).relu()
        key = self.key_norm(self.key(x), extent).relu()
        valid = None if extent is None else grid.valid(extent, *x.shape[1:3]).flatten(1)[:, None, None]
        # One head: without that dimension PyTorch writes out all pairs of pixels.
        query, key, value = (projected.flatten(1, 2)[:, None] for projected in (query, key, self.value(x)))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=valid)
        return x + self.out(found[:, 0].unflatten(1, x.shape[1:3]))

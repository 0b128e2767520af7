"""SPoC: sum-pooled features, weighed by a prior for the middle of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import whitening
from hamlet.nn import grid


@dataclass(frozen=True)
class SpocConfig(ModelConfig):
    """What a SPoC is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        centred: weigh pixels by the paper's Gaussian around the middle; otherwise all alike.
    """

    centred: bool = True


class Spoc(Model):
    """psi = sum_yx a_yx X_yx, a_yx = exp(-((y - (H - 1) / 2)^2 + (x - (W - 1) / 2)^2) / (2 sigma^2)), X the last map.

    sigma is a third of the distance from the middle to the nearest border, min(H, W) / 6. The sum is normalised,
    whitened and normalised again. Ours: the whitening is a linear layer learnt with the rest, where the paper takes
    principal components of held-out pictures.

    Example:
        >>> model = Spoc(SpocConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Babenko, Lempitsky, "Aggregating Deep Convolutional Features for Image Retrieval" (ICCV 2015).
    """

    def __init__(self, config: SpocConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        self.centred = config.centred
        self.whiten = whitening(self.hfe.channels[0], config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = grid.zero_padding(features[0], extent)
        weights = centre_prior(x, extent, centred=self.centred)
        pooled = torch.einsum("bhw,bhwc->bc", weights, x.to(weights.dtype))
        share = weights / weights.sum((1, 2), keepdim=True)
        return unit(self.whiten(unit(pooled))), Maps.plain(share, 0, extents, [pooled])


def centre_prior(x: Tensor, extent: Tensor | None, *, centred: bool = True) -> Tensor:
    """The weight a_yx of every pixel of (B, H, W, C), in float32 or better: (B, H, W), 0 in the padding.

    Example:
        >>> centre_prior(torch.zeros(1, 1, 3, 8), None)  # sigma is 1 / 6
        tensor([[[1.5230e-08, 1.0000e+00, 1.5230e-08]]])
    """
    batch, height, width = x.shape[:3]
    sizes = x.new_tensor([height, width]).expand(batch, 2) if extent is None else extent
    sizes = sizes.to(torch.promote_types(x.dtype, torch.float32))
    y, x_ = (
        torch.arange(side, device=x.device) - (sizes[:, axis, None] - 1) / 2
        for axis, side in enumerate((height, width))
    )
    sigma = sizes.amin(1)[:, None, None] / 6
    squares = y.square()[:, :, None] + x_.square()[:, None, :]
    weights = (-squares / (2 * sigma**2)).exp() if centred else torch.ones_like(squares)
    return weights if extent is None else weights.masked_fill(~grid.valid(extent, height, width), 0)

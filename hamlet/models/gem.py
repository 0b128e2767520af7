"""GeM, the plain descriptor: a backbone's last map, pooled by its generalised mean and whitened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import check_power, generalised_mean, whitening
from hamlet.nn.grgm import check_batch


@dataclass(frozen=True)
class GemConfig(ModelConfig):
    """What a GeM baseline is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        power: the power p to begin with; it is learnt.
        centre: end in the batch normalisation that HAMLET's descriptor ends in; training then takes batches of two or
            more. It tells what of HAMLET's lead is that layer's.
    """

    power: float = 3.0
    centre: bool = False


class Gem(Model):
    """A backbone's last feature map, pooled by its generalised mean, whitened by a linear layer, normalised.

    The pooling map is each pixel's share of what is pooled, averaged over the channels.

    Example:
        >>> model = Gem(GemConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2018).
    """

    def __init__(self, config: GemConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        self.power = nn.Parameter(torch.tensor(float(check_power(config.power))))
        self.whiten = whitening(self.hfe.channels[0], config.descriptor_dim)
        self.centre = nn.BatchNorm1d(config.descriptor_dim) if config.centre else None

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        pooled, share = generalised_mean(features[0], self.power, extent_of(extents, 0))
        vector = self.whiten(pooled)
        if self.centre is not None:
            vector = self.centre(check_batch("features", vector, self.training))
        return unit(vector), Maps.plain(share, 0, extents, [pooled])

"""DELG's global branch: a generalised mean of fixed power, and a whitening layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import check_power, generalised_mean, whitening


@dataclass(frozen=True)
class DelgConfig(ModelConfig):
    """What DELG's global branch is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        power: p, which stays as it is.
    """

    power: float = 3.0


class Delg(Model):
    """g = Normalize(F GeM_3(X) + b), X the backbone's last map.

    What tells it from :class:`hamlet.models.gem.Gem` is that p = 3 is not learnt. DELG's local branch is left out: its
    gradient is stopped before the backbone, so it does not change the global descriptor. Ours: its classification is
    the recipe's ArcFace, without the paper's learnt scale.

    Example:
        >>> import torch
        >>> model = Delg(DelgConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Cao, Araujo, Sim, "Unifying Deep Local and Global Features for Image Search" (ECCV 2020), §3.2.
    """

    def __init__(self, config: DelgConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        self.power = check_power(config.power)
        self.whiten = whitening(self.hfe.channels[0], config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        pooled, share = generalised_mean(features[0], self.power, extent_of(extents, 0))
        return unit(self.whiten(pooled)), Maps.plain(share, 0, extents, [pooled])

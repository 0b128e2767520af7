"""mace_like: what the words "multi-scale adaptive context enhancement" say, as a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hamlet.models.attention import perceptron
from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import check_power, generalised_mean, whitening
from hamlet.nn import grid
from hamlet.nn.branch import branch_end


@dataclass(frozen=True)
class MaceLikeConfig(ModelConfig):
    """What a mace_like is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        width: channels of the branches.
        dilations: of the parallel branches, one each.
        power: the power p of the pooling to begin with; it is learnt.
    """

    width: int = 128
    dilations: tuple[int, ...] = (1, 2, 3, 4)
    power: float = 3.0


class MaceLike(Model):
    """X + W sum_b w_b(X) Conv_b(V X): parallel dilated convolutions, weighed by content; GeM, whitened, normalised.

    All of it is ours. Of MACE nothing is known but that it is a convolutional network with multi-scale adaptive context
    enhancement: no definition is public. So this is no reproduction of it, and its figures say nothing about MACE.
    Scales are the branches' dilations and a global mean; adaptive are their weights, a softmax over the branches for
    each image and channel, after Li et al.; there is no attention between pixels. W begins at zero.

    Example:
        >>> model = MaceLike(MaceLikeConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: the name, HAMLET architecture, §5.2; weights over branches after Li et al., "Selective Kernel Networks"
    (CVPR 2019).
    """

    def __init__(self, config: MaceLikeConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        channels, width = self.hfe.channels[0], config.width
        if width < 2:
            raise ValueError(f"width: got {width}, expected at least 2")
        if not config.dilations or min(config.dilations) < 1:
            raise ValueError(f"dilations: got {config.dilations}, expected one or more numbers >= 1")
        self.reduce = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.dilated = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation) for dilation in config.dilations
        )
        self.around = nn.Linear(width, width)
        self.weigh = nn.Sequential(perceptron(width, width // 2), nn.Linear(width, (len(self.dilated) + 1) * width))
        self.out = branch_end(width, channels)
        self.power = nn.Parameter(torch.tensor(float(check_power(config.power))))
        self.whiten = whitening(channels, config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = grid.zero_padding(features[0], extent)
        x = x + self.out(self.enhance(grid.zero_padding(self.reduce(x), extent), extent))
        pooled, share = generalised_mean(x, self.power, extent)
        return unit(self.whiten(pooled)), Maps.plain(share, 0, extents, [pooled])

    def enhance(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """The weighted sum of the branches, of (B, H, W, width) that is 0 in the padding."""
        mean = grid.mean(x, extent)
        weights = self.weigh(mean).unflatten(-1, (-1, x.shape[-1])).softmax(1)[:, :, None, None]
        planes = x.permute(0, 3, 1, 2)
        branches = [convolve(planes).permute(0, 2, 3, 1) for convolve in self.dilated]
        around = self.around(mean)[:, None, None].expand_as(x)
        found: Tensor = torch.stack([*branches, around], 1).mul(weights).sum(1)
        return found.relu()

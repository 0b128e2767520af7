"""R-MAC: maxima over square regions of several sizes, whitened one by one and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import whitening
from hamlet.nn import grid

OVERLAP = 0.4
MOST_ALONG = 7


@dataclass(frozen=True)
class RmacConfig(ModelConfig):
    """What an R-MAC is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        scales: sizes of regions; l = 1 are the largest, as wide as the map's shorter side.
    """

    scales: int = 3


class Rmac(Model):
    """g = Normalize(sum_r Normalize(W Normalize(max_{yx in r} X_yx) + b)) over the regions r of :func:`regions`.

    The pooling map is how often a pixel was a region's maximum, over channels and regions. Ours: nothing but the
    whitening, a linear layer learnt with the rest as in Gordo et al., where Tolias et al. take principal components.

    Example:
        >>> model = Rmac(RmacConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 96)).shape)
        (2, 64)

    Source: Tolias, Sicre, Jégou, "Particular Object Retrieval With Integral Max-Pooling of CNN Activations" (ICLR
    2016); Gordo, Almazán, Revaud, Larlus, "End-to-End Learning of Deep Visual Representations for Image Retrieval"
    (IJCV 2017).
    """

    def __init__(self, config: RmacConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        if config.scales < 1:
            raise ValueError(f"scales: got {config.scales}, expected at least 1")
        self.scales = config.scales
        self.whiten = whitening(self.hfe.channels[0], config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = features[0].to(torch.promote_types(features[0].dtype, torch.float32))
        height, width = x.shape[1:3]
        sizes = [(height, width)] * len(x) if extent is None else [(h, w) for h, w in extent.tolist()]
        sums = x.new_zeros(len(x), self.descriptor_dim)
        counts = x.new_zeros(len(x), height * width)
        for size in sorted(set(sizes)):
            samples = torch.tensor([sample for sample, own in enumerate(sizes) if own == size], device=x.device)
            maxima, places = _maxima(x[samples], regions(*size, self.scales))
            vectors = F.normalize(self.whiten(F.normalize(maxima, dim=-1)), dim=-1)
            sums = sums.index_copy(0, samples, vectors.to(sums.dtype).sum(1))
            counts = counts.index_copy(0, samples, _histogram(places, height * width).to(counts.dtype))
        pooling = counts.unflatten(1, (height, width))
        return unit(sums), Maps.plain(pooling, 0, extents, [grid.mean(x, extent)])


def regions(height: int, width: int, scales: int = 3) -> list[tuple[int, int, int]]:
    """The squares (top, left, side) of a grid: at scale l, l along its shorter side and l + m along its longer one.

    A side is floor(2 min(height, width) / (l + 1)), at least 1; the squares are spread evenly. m is such that squares
    of the first scale overlap their neighbours by 40% of their area, or as nearly as 2 to 7 of them can.

    Example:
        >>> regions(2, 3, scales=1)
        [(0, 0, 2), (0, 1, 2)]
        >>> len(regions(16, 16)), len(regions(12, 16))
        (14, 20)
    """
    short, long = min(height, width), max(height, width)
    along = min(range(2, MOST_ALONG + 1), key=lambda count: abs(1 - (long - short) / (count - 1) / short - OVERLAP))
    more = along - 1 if long > short else 0
    found = []
    for scale in range(1, scales + 1):
        side = max(1, 2 * short // (scale + 1))
        rows = _spread(height - side, scale + (more if height > width else 0))
        columns = _spread(width - side, scale + (more if width > height else 0))
        found += [(top, left, side) for top in rows for left in columns]
    return found


def _spread(room: int, count: int) -> list[int]:
    return [0] if count == 1 else [index * room // (count - 1) for index in range(count)]


def _maxima(x: Tensor, boxes: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Each region's maxima, (B, R, C), and where in the grid, counted along its rows, they lie."""
    maxima, places = [], []
    for top, left, side in boxes:
        found, at = x[:, top : top + side, left : left + side].flatten(1, 2).max(1)
        maxima.append(found)
        places.append((top + at // side) * x.shape[2] + left + at % side)
    return torch.stack(maxima, 1), torch.stack(places, 1)


def _histogram(places: Tensor, size: int) -> Tensor:
    """The share of the entries of (B, R, C) that each place has: (B, size)."""
    flat = places.flatten(1)
    counts = torch.zeros(len(flat), size, device=flat.device)
    return counts.scatter_add_(1, flat, torch.full(flat.shape, 1 / flat.shape[1], device=flat.device))

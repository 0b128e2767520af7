"""ULTRON: convolutions that choose each channel's dilation, then local attention with context in its keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models.attention import check_heads, perceptron
from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit, unpadded
from hamlet.models.pooling import check_power, generalised_mean, whitening
from hamlet.nn import grid
from hamlet.ops import cross_scale_attention, dynamic_conv2d

DILATIONS = (1, 3, 6)
CONTEXT_DILATIONS = (1, 2, 3)
SPAN = 5
"""Neighbouring channels that decide on a channel's attention."""


@dataclass(frozen=True)
class UltronConfig(ModelConfig):
    """What an ULTRON is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        width: channels of the four stages.
        heads: of each attention; divides ``width``.
        radius: half-width of the windows of attention, in pixels of their stage: 3 sees 7 x 7.
        thresholds: of the channel attention: dilation 1 below the first, 3 between them, 6 above.
        power: p of the pooling's query, a generalised mean; it stays as it is.
    """

    width: int = 128
    heads: int = 4
    radius: float = 3.0
    thresholds: tuple[float, float] = (0.45, 0.55)
    power: float = 3.0


class Ultron(Model):
    """Four stages on a backbone's last four levels: two of :class:`CDConv`, two of :class:`SCALA`; attention pooling.

    A stage takes its level of the backbone, brought to ``width`` channels, plus the stage before it, resampled. The
    descriptor is the normalised projection of what a query, made of the last stage's generalised mean, finds among that
    stage's pixels.

    The paper's tables were not at hand. From it: what CDConv, SCALA and the pooling are made of, dilations 1, 3 and 6
    by two thresholds, a context of dilated convolutions 1, 2 and 3, the order of the stages. Ours: that the stages
    stand beside a timm backbone instead of replacing it, one block a stage, the widths, the thresholds' values and that
    more attention means a larger dilation, the size of the windows, layer norms, residual branches, that the query's
    mean is of softplus(X), as a generalised mean wants positive numbers, and that the channel attention multiplies the
    convolution's result, through which it learns, as a dilation has no gradient; that convolutions are depthwise, in
    CDConv and in the context alike; that five neighbouring channels decide on a channel's attention, whose bias
    begins at zero, so that fresh models use all dilations; and that SCALA's queries and values are of the features
    themselves, although the paper's abstract speaks of value features that broader information updates.

    Example:
        >>> model = Ultron(UltronConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Kweon, Park, "ULTRON: Unifying Local Transformer and Convolution for Large-scale Image Retrieval" (ACCV
    2024).
    """

    def __init__(self, config: UltronConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-4, -3, -2, -1), pretrained)
        width, heads = config.width, check_heads(config.heads, config.width)
        if not 0.5 <= config.radius < math.inf:
            raise ValueError(f"radius: got {config.radius}, expected a finite number of pixels >= 0.5")
        if not 0 < config.thresholds[0] <= config.thresholds[1] < 1:
            raise ValueError(f"thresholds: got {config.thresholds}, expected 0 < first <= second < 1")
        self.power = check_power(config.power)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width)) for channels in self.hfe.channels
        )
        self.stages = nn.ModuleList(
            CDConv(width, config.thresholds) if stage < 2 else SCALA(width, heads, config.radius) for stage in range(4)
        )
        self.pool = _GemQueryPool(width, heads, self.power)
        self.whiten = whitening(width, config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        each = unpadded(features, extents)
        levels: list[Tensor] = []
        for lateral, stage, level, extent in zip(self.lateral, self.stages, features, each, strict=True):
            x = lateral(grid.zero_padding(level, extent))
            if levels:
                size = (x.shape[1], x.shape[2])
                x = x + grid.resample(levels[-1], size, each[len(levels) - 1], extent)
            levels.append(stage(x, extent))
        pooled, share = self.pool(levels[-1], extent_of(extents, 3))
        embeddings = [grid.mean(level, extent) for level, extent in zip(levels, each, strict=True)]
        return unit(self.whiten(pooled)), Maps.plain(share, 3, extents, embeddings)


class CDConv(nn.Module):
    """X + MLP(LN(a * DWConv(X; d))): channel attention a = sigmoid(Conv1D(mean(X))) and a dilation d_c by its size.

    d_c is 1 below the first threshold on a_c, 3 below the second, 6 above; chosen for each image as it runs.
    """

    dilations: Tensor
    thresholds: Tensor

    def __init__(self, width: int, thresholds: tuple[float, float]) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.empty(width, 1, 3, 3))
        nn.init.trunc_normal_(self.kernels, std=(1 / 9) ** 0.5)
        self.attend = nn.Conv1d(1, 1, SPAN, padding=SPAN // 2)
        # The usual random bias can be twice as long as the way from the middle to a threshold, for all channels alike.
        nn.init.zeros_(self.attend.get_parameter("bias"))
        self.norm = nn.LayerNorm(width)
        self.mlp = perceptron(width, 2 * width)
        self.register_buffer("dilations", torch.tensor(DILATIONS), persistent=False)
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """Revise (B, H, W, C), finite in the padding too."""
        attention, dilation = self.choose(x, extent)
        planes = dynamic_conv2d(
            x.permute(0, 3, 1, 2),
            self.kernels.expand(len(x), *self.kernels.shape).to(x.dtype),
            dilation=dilation,
            max_dilation=max(DILATIONS),
            groups=x.shape[-1],
            extent=extent,
        )
        revised: Tensor = x + self.mlp(self.norm(planes.permute(0, 2, 3, 1) * attention[:, None, None]))
        return revised

    def choose(self, x: Tensor, extent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The attention and the dilation of each sample's channels, both (B, C)."""
        attention = self.attend(grid.mean(x, extent)[:, None]).squeeze(1).sigmoid()
        return attention, self.dilations[torch.bucketize(attention.detach().to(self.thresholds.dtype), self.thresholds)]


class SCALA(nn.Module):
    """Local attention whose keys hold context: K = W_k C, C = W [X, D_1 X, D_2 X, D_3 X], D_d dilated by d, depthwise.

    Queries and values are of the features themselves; then the usual perceptron. Both are residual branches.
    """

    def __init__(self, width: int, heads: int, radius: float) -> None:
        super().__init__()
        self.heads, self.radius = heads, radius
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dilated = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width)
            for dilation in CONTEXT_DILATIONS
        )
        self.context = nn.Linear((1 + len(CONTEXT_DILATIONS)) * width, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = perceptron(width, 2 * width)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """Revise (B, H, W, C), finite in the padding too."""
        normed = grid.zero_padding(self.norm(x), extent)
        planes = normed.permute(0, 3, 1, 2)
        around = [convolve(planes).permute(0, 2, 3, 1) for convolve in self.dilated]
        context = self.context(torch.cat([normed, *around], -1))
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1))
            for projected in (self.query(normed), self.key(context), self.value(normed))
        )
        attended = cross_scale_attention(
            query, key, value, radius=self.radius, max_radius=self.radius, query_extent=extent, key_extent=extent
        )
        x = x + self.out(attended.flatten(3))
        revised: Tensor = x + self.mlp(self.mlp_norm(x))
        return revised


class _GemQueryPool(nn.Module):
    """One vector for a map: its pixels, weighed by how they answer a query made of their generalised mean."""

    def __init__(self, width: int, heads: int, power: float) -> None:
        super().__init__()
        self.heads, self.power = heads, power
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, extent: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C), and the pixels' weights averaged over the heads, (B, H, W)."""
        mean, _ = generalised_mean(F.softplus(x), self.power, extent)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1))
            for projected in (self.query(mean.to(x.dtype)), self.key(x), self.value(x))
        )
        logits = torch.einsum("bnd,bhwnd->bnhw", query, key) * query.shape[-1] ** -0.5
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if extent is not None:
            logits = logits.masked_fill(~grid.valid(extent, *x.shape[1:3])[:, None], -torch.inf)
        weights = logits.flatten(2).softmax(-1).unflatten(-1, x.shape[1:3])
        return torch.einsum("bnhw,bhwnd->bnd", weights.to(value.dtype), value).flatten(1), weights.mean(1)

"""HAMLET: backbone features, cross-scale attention, context-made convolution, fusion and one global descriptor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, unpadded
from hamlet.models.pooling import generalised_mean
from hamlet.nn import ACSA, CECM, GRGM, HFFN, grid

POWER = 3.0
"""Of the generalised mean of the last level, which stands beside the pooled map in the descriptor's perceptron."""


@dataclass(frozen=True)
class HamletConfig(ModelConfig):
    """What a HAMLET is made of; every part can be switched off, which leaves the plain thing in its place.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        levels: the backbone's feature levels that are used; negative ones count from the deepest.
        width: channels of every level after the backbone.
        heads: of each attention; divides ``width``.
        window: largest half-width of an attention window, in image pixels.
        acsa: attend across the levels; off: no attention.
        adaptive_radius: windows chosen by content; off: all windows at their largest.
        gated: the flow between levels gated by content; off: all of it.
        cross_scale: attend to all levels; off: each level to itself.
        cecm: convolve with kernels made for the image; off: no convolution.
        dynamic_kernels: off: the same kernels for all images.
        choose_dilation: each block of groups chooses its dilation by content; off: ``dilations`` in order.
        groups: of the convolution; None: depthwise.
        dilations: one for each block of groups.
        hffn: cross-attention and weights by content in the fusion; off: the mean of the levels.
        attention_pool: weigh pixels by content; off: their mean.
    """

    levels: tuple[int, ...] = (-3, -2, -1)
    width: int = 128
    heads: int = 4
    window: float = 48.0
    acsa: bool = True
    adaptive_radius: bool = True
    gated: bool = True
    cross_scale: bool = True
    cecm: bool = True
    dynamic_kernels: bool = True
    choose_dilation: bool = False
    groups: int | None = None
    dilations: tuple[int, ...] = (1, 2, 3, 4)
    hffn: bool = True
    attention_pool: bool = True


class Hamlet(Model):
    """The whole model: images in [0, 1] to L2-normalised descriptors; see :func:`hamlet.create_model`.

    Example:
        >>> import torch
        >>> model = Hamlet(HamletConfig("resnet18", descriptor_dim=64)).eval()
        >>> descriptors, maps = model([torch.rand(3, 64, 96), torch.rand(3, 80, 64)], return_maps=True)
        >>> tuple(descriptors.shape), tuple(maps.pooling.shape), maps.pooling_extent.tolist()
        ((2, 64), (2, 5, 6), [[4, 6], [5, 4]])

    Source: HAMLET architecture, §3.
    """

    def __init__(self, config: HamletConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, config.levels, pretrained)
        width, heads = config.width, config.heads
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width)) for channels in self.hfe.channels
        )
        self.acsa = (
            ACSA(
                width,
                self.hfe.strides,
                heads=heads,
                window=config.window,
                adaptive_radius=config.adaptive_radius,
                gated=config.gated,
                cross_scale=config.cross_scale,
            )
            if config.acsa
            else None
        )
        self.cecm = nn.ModuleList(
            CECM(
                width,
                groups=config.groups,
                dilations=config.dilations,
                dynamic=config.dynamic_kernels,
                choose_dilation=config.choose_dilation,
            )
            for _ in (self.hfe.channels if config.cecm else ())
        )
        self.hffn = HFFN(width, len(self.hfe.channels), heads=heads, adaptive=config.hffn)
        self.grgm = GRGM(
            width,
            config.descriptor_dim,
            heads=heads,
            attention_pool=config.attention_pool,
            beside=self.hfe.channels[-1],
        )

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = list(extents) if extents is not None else None
        each = unpadded(features, extents)
        levels = [
            lateral(grid.zero_padding(x, own)) for lateral, x, own in zip(self.lateral, features, each, strict=True)
        ]
        attended = self.acsa(levels, extent) if self.acsa is not None else None
        if attended is not None:
            levels = attended.levels
        if self.cecm:
            levels = [cecm(level, own) for cecm, level, own in zip(self.cecm, levels, each, strict=True)]
        fused, weights = self.hffn(levels, extent)
        strength, _ = generalised_mean(features[-1], POWER, each[-1])
        descriptors, pooling = self.grgm(fused, each[self.hffn.middle], strength)
        return descriptors, Maps(
            radius=attended.radius if attended is not None else [],
            gate=attended.gate if attended is not None else [],
            fusion_weights=weights,
            pooling=pooling,
            extents=extent,
            pooling_extent=each[self.hffn.middle],
            level_embeddings=[grid.mean(level, own) for level, own in zip(levels, each, strict=True)],
            mean_radius=attended.mean_radius if attended is not None else descriptors.new_zeros(()),
        )

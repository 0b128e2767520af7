"""What every model is: a backbone's features, and a head that makes one descriptor of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models.maps import Maps
from hamlet.nn.hfe import HFE, Images


@dataclass(frozen=True)
class ModelConfig:
    """What a model is made of; each method adds its own fields.

    Args:
        backbone: timm's name.
        descriptor_dim: length of the descriptor.
    """

    backbone: str
    descriptor_dim: int = 512


class Model(nn.Module, ABC):
    """Images in [0, 1] to L2-normalised descriptors; see :func:`hamlet.create_model`.

    Args:
        config: what the model is made of.
        levels: of the backbone's features, those that the head takes; see :class:`hamlet.nn.HFE`.
        pretrained: weights of the backbone, likewise.

    Raises:
        ValueError: a ``descriptor_dim`` below 1, or whatever :class:`hamlet.nn.HFE` refuses.
    """

    name: str

    def __init__(self, config: ModelConfig, levels: Sequence[int], pretrained: bool | str | Path) -> None:
        super().__init__()
        if config.descriptor_dim < 1:
            raise ValueError(f"descriptor_dim: got {config.descriptor_dim}, expected at least 1")
        self.config = config
        self.descriptor_dim = config.descriptor_dim
        self.hfe = HFE(config.backbone, levels, pretrained)

    @overload
    def forward(self, images: Images, return_maps: Literal[False] = ...) -> Tensor: ...
    @overload
    def forward(self, images: Images, return_maps: Literal[True]) -> tuple[Tensor, Maps]: ...
    def forward(self, images: Images, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Describe images.

        Args:
            images: (B, 3, H, W), or a sequence of B images (3, h, w) of any sizes, which are described as if each came
                alone; floating point, in [0, 1].
            return_maps: also return what led there.

        Returns:
            (B, descriptor_dim), each of length 1, at least float32; and :class:`hamlet.models.Maps`, if asked for.

        Raises:
            TypeError, ValueError: images of another dtype or shape.
        """
        descriptors, maps = self.forward_head(*self.forward_features(images))
        return (descriptors, maps) if return_maps else descriptors

    def forward_features(self, images: Images) -> tuple[list[Tensor], list[Tensor] | None]:
        """The backbone's maps (B, Hl, Wl, Cl) and their extents; see :meth:`hamlet.nn.hfe.HFE.forward`."""
        found: tuple[list[Tensor], list[Tensor] | None] = self.hfe(images)
        return found

    @abstractmethod
    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        """All that follows the backbone: descriptors and maps; what the features' padding holds changes nothing."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors (B, D) brought to length 1, in float32 or better."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


def extent_of(extents: Sequence[Tensor] | None, level: int) -> Tensor | None:
    """The extent of one level, or None where nothing is padded."""
    return None if extents is None else extents[level]


def unpadded(features: Sequence[Tensor], extents: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    """An extent, or None, for each level."""
    return extents if extents is not None else [None] * len(features)

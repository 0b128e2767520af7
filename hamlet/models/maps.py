"""What a model shows of its inner workings, when asked for with ``return_maps=True``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hamlet.nn.acsa import Pairs


@dataclass(frozen=True)
class Maps:
    """Maps that lead from an image to its descriptor; gradients flow through them.

    In a batch of images of different sizes, what lies beyond a sample's extent means nothing, but in ``pooling``, where
    it is 0.

    Args:
        radius: [i][j] is (B, Hi, Wi, heads), half-widths of the windows of level i's queries on level j, in pixels of
            level j; None for a pair that does not attend; an empty list without ACSA.
        gate: [i][j] is (B, Hi, Wi, heads), in (0, 1); None without a gate; an empty list without ACSA.
        fusion_weights: (B, H, W, L), sums to 1 over the levels; None for a model that fuses none.
        pooling: (B, H, W), sums to 1 over the valid pixels.
        extents: int (B, 2) for each level, valid (height, width); None where nothing is padded.
        pooling_extent: int (B, 2) for ``pooling`` and ``fusion_weights``, or None.
        level_embeddings: (B, C) for each level, its features averaged over the image, shallow levels first.
        mean_radius: 0-dim, in [0, 1]: the mean of (r - 0.5) / (R - 0.5), what a budget on compute holds down.
    """

    radius: Pairs
    gate: Pairs
    fusion_weights: Tensor | None
    pooling: Tensor
    extents: list[Tensor] | None
    pooling_extent: Tensor | None
    level_embeddings: list[Tensor]
    mean_radius: Tensor

    @classmethod
    def plain(
        cls, pooling: Tensor, level: int, extents: Sequence[Tensor] | None, level_embeddings: list[Tensor]
    ) -> Maps:
        """The maps of a model without windows, gates or fusion, which pools on the grid of one of its levels."""
        return cls(
            radius=[],
            gate=[],
            fusion_weights=None,
            pooling=pooling,
            extents=None if extents is None else list(extents),
            pooling_extent=None if extents is None else extents[level],
            level_embeddings=level_embeddings,
            mean_radius=level_embeddings[0].new_zeros(()),
        )

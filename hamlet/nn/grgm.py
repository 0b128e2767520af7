"""GRGM, the global representation (HAMLET architecture, §3.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.nn import grid
from hamlet.nn.branch import branch_end

BEGINNING = 0.05
"""Of the perceptron: a linear map of fresh features tells images apart better."""


class GRGM(nn.Module):
    """One unit vector for a map: g = Normalize(MLP([AttentionPool(Z), v])), v a vector of the backbone's, if any.

    Z is normalised pixel by pixel, which takes away how strongly the backbone answered; v can bring that back.

    The perceptron ends in a batch normalisation, so training takes batches of two or more.

    Args:
        width: channels C of the map.
        descriptor_dim: length of the vector.
        heads: of the pooling, each with its own softmax over the pixels; divides ``descriptor_dim``.
        attention_pool: weigh the pixels by content; otherwise all alike.
        beside: length of v; 0: there is none.

    Raises:
        ValueError: a ``descriptor_dim`` below 1; in ``forward``, a batch of one in training mode.

    Example:
        >>> grgm = GRGM(32, descriptor_dim=64)
        >>> descriptor, pooling = grgm(torch.randn(2, 7, 5, 32))
        >>> tuple(descriptor.shape), tuple(pooling.shape)
        ((2, 64), (2, 7, 5))

    Source: §3.6; the batch normalisation after Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification" (CVPR workshops 2019).
    """

    def __init__(
        self,
        width: int,
        descriptor_dim: int = 512,
        *,
        heads: int = 4,
        attention_pool: bool = True,
        beside: int = 0,
    ) -> None:
        super().__init__()
        if descriptor_dim < 1:
            raise ValueError(f"descriptor_dim: got {descriptor_dim}, expected at least 1")
        hidden = 4 * width
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, hidden)
        self.score = nn.Linear(width, heads, bias=False) if attention_pool else None
        if self.score is not None:
            nn.init.trunc_normal_(self.score.weight, std=0.02)
        self.mlp = _ResidualMLP(hidden + beside, descriptor_dim)
        # Vectors of fresh features all point one way; taking that away lets their differences be seen from the start.
        self.centre = nn.BatchNorm1d(descriptor_dim)

    def forward(self, x: Tensor, extent: Tensor | None = None, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Describe maps.

        Args:
            x: (B, H, W, C), finite in the padding too.
            extent: int (B, 2), or None.
            beside: v, (B, beside), or None where there is none.

        Returns:
            Descriptors (B, descriptor_dim) of length 1, at least float32, and the weights of the pixels, averaged over
            the heads: (B, H, W), which sum to 1 over the valid pixels and are 0 outside.
        """
        x = self.norm(check_batch("x", x, self.training))
        weights = self._weights(x, extent)
        values = self.value(x).unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bhwn,bhwnc->bnc", weights.to(values.dtype), values).flatten(1)
        if beside is not None:
            pooled = torch.cat([pooled, beside.to(pooled.dtype)], 1)
        vector = self.centre(self.mlp(pooled))
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        return F.normalize(vector, dim=1), weights.mean(-1)

    def _weights(self, x: Tensor, extent: Tensor | None) -> Tensor:
        logits = self.score(x) if self.score is not None else x.new_zeros((*x.shape[:3], self.heads))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if extent is not None:
            logits = logits.masked_fill(~grid.valid(extent, *x.shape[1:3])[..., None], -torch.inf)
        return logits.flatten(1, 2).softmax(1).unflatten(1, x.shape[1:3])


def check_batch(name: str, samples: Tensor, training: bool) -> Tensor:
    """The samples themselves; ValueError where training would normalise a batch of one."""
    if training and len(samples) == 1:
        raise ValueError(f"{name}: got a batch of 1 in training mode, expected 2 or more; or call eval()")
    return samples


class _ResidualMLP(nn.Module):
    """A perceptron, which begins small, beside a linear map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        last = branch_end(inputs, outputs, BEGINNING)
        self.layers = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, inputs), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.layers(x)

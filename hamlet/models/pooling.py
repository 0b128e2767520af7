"""Pooling that several of the descriptors share, on maps (B, H, W, C) whose samples may be padded."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hamlet.nn import grid

LEAST = 1e-6
"""Features are raised to this before the power, whose gradient is infinite at 0."""

LEAST_POWER = 0.1
"""At and below 0 a power has no mean; a learnt one that strays there counts as this."""


def generalised_mean(features: Tensor, power: float | Tensor, extent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The power mean of each channel over the valid pixels, (mean x^p)^(1/p), in float32 or better.

    Args:
        features: (B, H, W, C); values below 1e-6 count as 1e-6.
        power: p; a tensor below 0.1 counts as 0.1.
        extent: int (B, 2), or None.

    Returns:
        (B, C); and each pixel's share of what is pooled, averaged over the channels: (B, H, W), which sums to 1.

    Example:
        >>> pooled, share = generalised_mean(torch.tensor([[[[1.0], [7.0]]]]), 2.0)
        >>> pooled, share
        (tensor([[5.]]), tensor([[[0.0200, 0.9800]]]))

    Source: Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2018).
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if isinstance(power, Tensor):
        power = power.clamp(min=LEAST_POWER)
    features = grid.zero_padding(features, extent).clamp(min=LEAST)
    # In units of the channel's largest, which cancel: to a high power 1e-6 would be 0, which has no shares and no root
    # with a gradient, and 20 infinite.
    largest = features.detach().amax((1, 2), keepdim=True)
    powered = grid.zero_padding((features / largest) ** power, extent)
    pooled = grid.mean(powered, extent) ** (1 / power) * largest[:, 0, 0]
    return pooled, (powered / powered.sum((1, 2), keepdim=True)).mean(-1)


def token_shares(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """What of each pixel goes to each token, a softmax over the tokens, then divided by its sum over the pixels.

    By logarithms: the sum of a token that no pixel is like is too small for a float, or its gradient too large.

    Args:
        logits: (B, N, L), N pixels and L tokens.
        valid: bool (B, N), or None; a pixel where it is False goes to no token. One in each sample is True.

    Returns:
        (B, N, L) in float32 or better, which sums to 1 over N.

    Example:
        >>> token_shares(torch.tensor([[[0.0, -200.0], [0.0, -201.0]]]))
        tensor([[[0.5000, 0.7311],
                 [0.5000, 0.2689]]])
    """
    logarithms = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if valid is not None:
        logarithms = logarithms.masked_fill(~valid[..., None], -math.inf)
    return logarithms.softmax(1)


def check_power(power: float) -> float:
    """The power itself; ValueError for one that is below the least, or not finite."""
    if not LEAST_POWER <= power < math.inf:
        raise ValueError(f"power: got {power}, expected a finite number >= {LEAST_POWER}")
    return power


def whitening(inputs: int, outputs: int) -> nn.Linear:
    """The linear layer that takes the part of a whitening: a learnt projection, centred nowhere to begin with.

    The usual random bias would be as long as a unit vector's projection and make all pictures look alike.
    """
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    return layer


class PixelNorm(nn.Module):
    """Batch normalisation of maps (B, H, W, C), whose statistics are those of the valid pixels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Held, not inherited: training over several GPUs puts another layer in the place of every BatchNorm.
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        if extent is None:
            normed: Tensor = self.norm(x.flatten(0, 2))
            return normed.view_as(x)
        valid = grid.valid(extent, *x.shape[1:3])
        normed = self.norm(x[valid])
        return normed.new_zeros(x.shape).masked_scatter(valid[..., None], normed)

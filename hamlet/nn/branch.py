"""The last layer of a residual branch that begins at, or near, zero."""

from __future__ import annotations

from timm.layers import LayerScale
from torch import nn


def branch_end(inputs: int, outputs: int, scale: float = 0.0) -> nn.Sequential:
    """A linear layer, and a learnt factor for each of its channels that begins at ``scale``.

    A matrix that begins near zero says the same, but LAMB moves a matrix by a share of its length, so it stays there.
    The factors are a vector, which LAMB moves by the learning rate itself.

    Example:
        >>> import torch
        >>> branch_end(4, 3)(torch.randn(2, 4)).abs().max().item()
        0.0

    Source: Touvron et al., "Going deeper with Image Transformers" (ICCV 2021), §2.1.
    """
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, LayerScale(outputs, scale))

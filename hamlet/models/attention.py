"""Global multi-head attention that several of the descriptors share, beginning at zero."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.nn.branch import branch_end


class Attention(nn.Module):
    """Queries (B, N, C) look at a context (B, M, Cc); what they find is projected by a layer that begins at zero.

    Args:
        width: C of the queries and of the result.
        context: Cc.
        heads: divides ``width``.

    Raises:
        ValueError: a width below 1, or heads that do not divide it.

    Example:
        >>> import torch
        >>> attention = Attention(width=16, context=6, heads=2)
        >>> attention(torch.randn(1, 5, 16), torch.randn(1, 7, 6)).abs().max().item()
        0.0
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = check_heads(heads, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context, width)
        self.value = nn.Linear(context, width)
        self.out = branch_end(width, width)

    def forward(self, queries: Tensor, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attend; ``valid`` is bool (B, M), False for what is not there, which has to be finite all the same."""
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(queries), self.key(context), self.value(context))
        )
        mask = None if valid is None else valid[:, None, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return attended


def check_heads(heads: int, width: int) -> int:
    """The heads themselves; ValueError for a width below 1, or heads that do not divide it."""
    if width < 1:
        raise ValueError(f"width: got {width}, expected at least 1")
    if heads < 1 or width % heads:
        raise ValueError(f"heads: got {heads}, expected a divisor of the width {width}")
    return heads


def perceptron(width: int, hidden: int) -> nn.Sequential:
    """The two layers that follow an attention."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

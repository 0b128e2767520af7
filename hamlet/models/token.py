"""Token: a few visual tokens, each a weighted mean of features, refined and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hamlet.models.attention import Attention, check_heads, perceptron
from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import PixelNorm, token_shares, whitening
from hamlet.nn import grid
from hamlet.nn.grgm import check_batch


@dataclass(frozen=True)
class TokenConfig(ModelConfig):
    """What a Token model is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        width: channels of features and tokens.
        tokens: L, how many.
        heads: of each attention; divides ``width``.
        refinements: how often the tokens are refined.
    """

    width: int = 256
    tokens: int = 4
    heads: int = 8
    refinements: int = 2


class Token(Model):
    """Features with self-attention, tokenised, refined, concatenated, projected, normalised.

    The pooling map is each pixel's share of a token, averaged over the tokens. Ours: 256 channels, where the paper has
    1024 behind a ResNet101; no dropout; and a token is a mean of its pixels, where the authors' code leaves the sum
    undivided; and each attention ends in a linear layer times a factor for each channel that begins at zero, its
    queries, keys and values beginning as any linear layer. The descriptor ends in a batch normalisation, so training
    takes batches of two or more.

    Example:
        >>> model = Token(TokenConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Wu, Wang, Zhou, Hu, Li, "Learning Token-Based Representation for Image Retrieval" (AAAI 2022).
    """

    def __init__(self, config: TokenConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        width, heads = config.width, check_heads(config.heads, config.width)
        if config.refinements < 0:
            raise ValueError(f"refinements: got {config.refinements}, expected 0 or more")
        self.reduce = nn.Linear(self.hfe.channels[0], width)
        self.reduce_norm = PixelNorm(width)
        self.encode = _Encoder(width, heads)
        self.tokenise = Tokeniser(width, config.tokens)
        self.token_norm = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.refine = nn.ModuleList(_Refinement(width, heads) for _ in range(config.refinements))
        self.whiten = whitening(config.tokens * width, config.descriptor_dim)
        self.centre = nn.BatchNorm1d(config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = self.reduce_norm(self.reduce(grid.zero_padding(features[0], extent)), extent)
        valid = None if extent is None else grid.valid(extent, *x.shape[1:3]).flatten(1)
        pixels = self.encode(x, extent, valid)
        tokens, shares = self.tokenise(pixels, valid)
        tokens = self.token_norm(tokens)
        for refine in self.refine:
            tokens = refine(tokens, pixels, valid)
        pooling = shares.mean(-1).unflatten(1, x.shape[1:3])
        embedding = grid.mean(pixels.unflatten(1, x.shape[1:3]), extent)
        vectors = check_batch("features", self.whiten(tokens.flatten(1)), self.training)
        return unit(self.centre(vectors)), Maps.plain(pooling, 0, extents, [embedding])


class Tokeniser(nn.Module):
    """t_l = sum_n a_nl f_n / sum_n a_nl, a_n = softmax over the tokens of (f_n . w_l): each pixel is shared out.

    Args:
        width: channels C.
        tokens: L.

    Raises:
        ValueError: fewer than two tokens.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        if tokens < 2:
            raise ValueError(f"tokens: got {tokens}, expected at least 2")
        self.score = nn.Parameter(torch.randn(tokens, width))

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, C) of pixels (B, N, C), and each pixel's share of each, (B, N, L), which sum to 1 over N."""
        shares = token_shares(pixels @ self.score.T.to(pixels.dtype), valid)
        return shares.to(pixels.dtype).transpose(1, 2) @ pixels, shares


class _Encoder(nn.Module):
    """Features look at each other, then pass a batch-normalised linear layer; both are residual branches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads)
        self.norm = PixelNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, extent: Tensor | None, valid: Tensor | None) -> Tensor:
        """Pixels (B, N, C) of (B, H, W, C), finite in the padding too."""
        pixels = x.flatten(1, 2)
        x = (pixels + self.attention(pixels, pixels, valid)).unflatten(1, x.shape[1:3])
        encoded: Tensor = x + self.linear(self.norm(x, extent))
        return encoded.flatten(1, 2)


class _Refinement(nn.Module):
    """Tokens look at the features, then at each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.across_norm, self.among_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = Attention(width, width, heads)
        self.among = Attention(width, width, heads)
        self.mlp = perceptron(width, 2 * width)

    def forward(self, tokens: Tensor, pixels: Tensor, valid: Tensor | None) -> Tensor:
        tokens = tokens + self.across(self.across_norm(tokens), pixels, valid)
        tokens = tokens + self.mlp(tokens)
        normed = self.among_norm(tokens)
        return tokens + self.among(normed, normed)

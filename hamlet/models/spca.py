"""SpCa: local features that know what lies around them, and how far away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models.attention import Attention, perceptron
from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig, extent_of, unit
from hamlet.models.pooling import check_power, generalised_mean, token_shares, whitening
from hamlet.nn import grid

POWERS = (2, 3, 4)
"""Of the distance matrix: steps of a walk over the grid."""


@dataclass(frozen=True)
class SpcaConfig(ModelConfig):
    """What a SpCa is made of.

    Args:
        backbone, descriptor_dim: see :class:`hamlet.models.model.ModelConfig`.
        width: channels in which tokens are told apart.
        tokens: K, how many types of local features there are.
        heads: of the cross-attention; divides the backbone's channels.
        power: p of the generalised mean, which stays as it is.
    """

    width: int = 128
    tokens: int = 16
    heads: int = 8
    power: float = 3.0


class Spca(Model):
    """Spatial-context-aware features F' = F + Attention(LN(F), context(F)), F' + MLP(F'); GeM_3, whitened, normalised.

    The context of a pixel is what tokens its surroundings are made of, near and farther; see :class:`SpatialContext`.
    Features are queries, the context is keys and values, and the attention begins at zero. Ours: tokens are ordinary
    parameters, which the gradient alone moves; the paper also updates them on line. The authors' code normalises the
    tokens and projects the context to the features' channels before the attention; here its keys and values do, which
    begin as any linear layer, and its last layer is a linear one times a factor for each channel, which begins at zero.
    Published with ArcFace of scale 32 and margin 0.15 radians.

    Example:
        >>> model = Spca(SpcaConfig("resnet18", descriptor_dim=64)).eval()
        >>> tuple(model(torch.rand(2, 3, 64, 64)).shape)
        (2, 64)

    Source: Zhang, Wang, Zhou, Koniusz, "Learning Spatial-context-aware Global Visual Feature Representation for
    Instance Image Retrieval" (ICCV 2023).
    """

    def __init__(self, config: SpcaConfig, *, pretrained: bool | str | Path = False) -> None:
        super().__init__(config, (-1,), pretrained)
        channels = self.hfe.channels[0]
        self.power = check_power(config.power)
        self.context = SpatialContext(channels, config.width, config.tokens)
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, config.tokens * len(POWERS), config.heads)
        self.mlp = perceptron(channels, 2 * channels)
        self.whiten = whitening(channels, config.descriptor_dim)

    def forward_head(self, features: Sequence[Tensor], extents: Sequence[Tensor] | None = None) -> tuple[Tensor, Maps]:
        extent = extent_of(extents, 0)
        x = grid.zero_padding(features[0], extent)
        valid = None if extent is None else grid.valid(extent, *x.shape[1:3]).flatten(1)
        context = self.context(x, extent).flatten(1, 2)
        pixels = x.flatten(1, 2)
        pixels = pixels + self.attention(self.norm(pixels), context, valid)
        pixels = pixels + self.mlp(pixels)
        pooled, share = generalised_mean(pixels.unflatten(1, x.shape[1:3]), self.power, extent)
        return unit(self.whiten(pooled)), Maps.plain(share, 0, extents, [pooled])


class SpatialContext(nn.Module):
    """Which tokens lie around each pixel, at three ranges: (B, H, W, C) -> (B, H, W, 3 K).

    ::

        R_nk = softmax_k(log(pi_k / sqrt(sigma_k)) - |x_n - mu_k|^2 / (2 sigma_k)) / (their sum over n)
        context_n = LayerNorm([A^2 R, A^3 R, A^4 R]_n)        A_nm = exp(-|n - m|) / sum_m exp(-|n - m|)

    x = W F in ``width`` channels, |n - m| the distance in pixels of the grid. pi and sigma are learnt by their
    logarithms, which keeps them above 0.

    Args:
        channels: C.
        width: of x and mu.
        tokens: K.

    Raises:
        ValueError: a width below 1, or fewer than two tokens.
    """

    def __init__(self, channels: int, width: int, tokens: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width: got {width}, expected at least 1")
        if tokens < 2:
            raise ValueError(f"tokens: got {tokens}, expected at least 2")
        self.project = nn.Linear(channels, width, bias=False)
        self.means = nn.Parameter(torch.empty(tokens, width))
        nn.init.xavier_uniform_(self.means)
        self.log_weights = nn.Parameter(torch.full((tokens,), 1 / tokens).log())
        self.log_variances = nn.Parameter(torch.zeros(tokens))
        self.norm = nn.LayerNorm(tokens * len(POWERS))

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        reached = []
        # Under autocast the products would leave float32 again.
        with torch.autocast(x.device.type, enabled=False):
            found = self.responsibilities(x, extent)
            walk = _walk(x.shape[1], x.shape[2], extent, found)
            for power in range(1, max(POWERS) + 1):
                found = walk @ found
                if power in POWERS:
                    reached.append(found)
        context: Tensor = self.norm(torch.cat(reached, -1).to(x.dtype)).unflatten(1, x.shape[1:3])
        return context

    def responsibilities(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """R, in float32 or better: (B, H W, K), which sums to 1 over the valid pixels and is 0 in the padding."""
        weight = self.project.weight
        pixels = F.linear(x.to(torch.promote_types(x.dtype, weight.dtype)), weight).flatten(1, 2)
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        # |x|^2 - 2 x.mu + |mu|^2, without a difference for each pair in memory.
        squares = pixels.square().sum(-1, keepdim=True) - 2 * pixels @ self.means.T + self.means.square().sum(-1)
        logits = self.log_weights - self.log_variances / 2 - squares / (2 * self.log_variances.exp())
        return token_shares(logits, None if extent is None else grid.valid(extent, *x.shape[1:3]).flatten(1))


def _walk(height: int, width: int, extent: Tensor | None, like: Tensor) -> Tensor:
    """A, (1 or B, H W, H W): rows of valid pixels sum to 1 over the valid pixels."""
    y, x = torch.meshgrid(*(torch.arange(side, device=like.device) for side in (height, width)), indexing="ij")
    places = torch.stack([y, x], -1).flatten(0, 1).to(like.dtype)
    near = (-(places[:, None] - places).norm(dim=-1)).exp()[None]
    if extent is not None:
        near = near * grid.valid(extent, height, width).flatten(1)[:, None]
    # A row of the padding may be too far from all valid pixels for float32.
    return near / near.sum(-1, keepdim=True).clamp(min=torch.finfo(near.dtype).tiny)

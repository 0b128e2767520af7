"""CECM, the context-enhanced convolution (HAMLET architecture, §3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hamlet.nn import grid
from hamlet.ops import dynamic_conv2d

KERNEL = 3
CELLS = 3
"""Cells a side of the coarse spatial context."""


class CECM(nn.Module):
    """A convolution whose kernels are made for each image from the image's own context.

    ::

        CECM(X) = Norm(X + GroupConv(X, W_dyn))        W_dyn = W + f_gen(ContextPool(X))

    ContextPool joins the mean of the map with a coarse grid of 3 x 3 weighted means, so the kernels know what is in the
    picture and about where. f_gen goes through a bottleneck, so it stays lean; it adds to kernels W that all images
    share. The channels are cut into as many equal blocks as there are ``dilations``, and each block has its own.

    Args:
        width: channels C.
        groups: of the convolution; None: one a channel (depthwise). The number of dilations divides it.
        dilations: each block's; with ``choose_dilation`` what each block chooses among.
        dynamic: make kernels from context; otherwise all images share W.
        choose_dilation: every block's dilation is the most probable by the context. Its kernels are multiplied by that
            probability, through which the choice learns (as a switch layer's router does).

    Raises:
        ValueError: groups that do not divide the width, dilations below 1 or whose number does not divide the groups.

    Example:
        >>> cecm = CECM(32, dilations=(1, 2))
        >>> tuple(cecm(torch.randn(2, 7, 5, 32)).shape)
        (2, 7, 5, 32)

    Source: §3.3; dynamic kernels after Chen et al., "Dynamic Convolution" (CVPR 2020); the choice after Fedus et al.,
    "Switch Transformers" (JMLR 2022).
    """

    candidates: Tensor

    def __init__(
        self,
        width: int,
        *,
        groups: int | None = None,
        dilations: Sequence[int] = (1, 2, 3, 4),
        dynamic: bool = True,
        choose_dilation: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.dilations = width if groups is None else groups, tuple(dilations)
        if self.groups < 1 or width % self.groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of the width {width}")
        if not dilations or min(dilations) < 1 or self.groups % len(dilations):
            raise ValueError(f"dilations: got {self.dilations}, expected numbers >= 1, as many as divide {self.groups}")
        self.kernels = nn.Parameter(torch.empty(width, width // self.groups, KERNEL, KERNEL))
        # The branch starts at half the variance of the residual stream it joins.
        nn.init.trunc_normal_(self.kernels, std=(0.5 / self.kernels[0].numel()) ** 0.5)
        self.context = ContextPool(width) if dynamic or choose_dilation else None
        self.generate = _bottleneck(self.context.width, self.kernels.numel()) if self.context and dynamic else None
        self.choose = nn.Linear(self.context.width, len(dilations) ** 2) if self.context and choose_dilation else None
        self.register_buffer("candidates", torch.tensor(self.dilations), persistent=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        """Convolve and normalise.

        Args:
            x: (B, H, W, C), finite in the padding too.
            extent: int (B, 2), or None.
        """
        weight = self.kernels.expand(x.shape[0], *self.kernels.shape)
        dilation: Sequence[int] | Tensor = self.dilations
        context = self.context(x, extent) if self.context is not None else None
        if self.generate is not None:
            weight = weight + self.generate(context).reshape(weight.shape)
        if self.choose is not None:
            dilation, confidence = self._choose(self.choose(context))
            blocks = weight.unflatten(1, (len(self.dilations), -1))
            weight = (blocks * confidence[..., None, None, None, None]).flatten(1, 2)
        planes = dynamic_conv2d(
            x.permute(0, 3, 1, 2),
            weight.to(x.dtype),
            dilation=dilation,
            max_dilation=max(self.dilations),
            groups=self.groups,
            residual=True,
            extent=extent,
        )
        return self.norm(planes.permute(0, 2, 3, 1))

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Each block's dilation and its probability, (B, blocks) both."""
        blocks = len(self.dilations)
        confidence, chosen = logits.unflatten(1, (blocks, blocks)).softmax(-1).max(-1)
        return self.candidates[chosen], confidence


class ContextPool(nn.Module):
    """The context of a map: its mean, and a coarse grid of means in a few channels: (B, H, W, C) -> (B, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(1, channels // 8)
        self.reduce = nn.Linear(channels, reduced)
        self.width = channels + CELLS**2 * reduced
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor, extent: Tensor | None = None) -> Tensor:
        coarse = self.reduce(grid.resample(x, (CELLS, CELLS), extent))
        return self.norm(torch.cat([grid.mean(x, extent), coarse.flatten(1)], 1))


def _bottleneck(inputs: int, outputs: int) -> nn.Sequential:
    hidden = max(8, inputs // 8)
    expand = nn.Linear(hidden, outputs)
    # Small beside the shared kernels to begin with: images differ by a little before they have learnt how.
    nn.init.trunc_normal_(expand.weight, std=0.02)
    nn.init.zeros_(expand.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), expand)

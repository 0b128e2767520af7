"""A detector-style neck: the levels of a feature pyramid talk to each other through pyramid_attention.

python examples/pyramid_neck.py
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from hamlet.ops import pyramid_attention


class PyramidNeck(nn.Module):
    """Backbone features (B, Ci, Hi, Wi) to as many maps (B, width, Hi, Wi), each informed by all levels.

    Every pixel looks at every level through a window of ``window`` image pixels around its own place, so that small
    things find their context and large ones their detail.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], width: int = 64, heads: int = 4, window: float = 64.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.radius = [[max(1.0, window / stride) for stride in strides] for _ in strides]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.project = nn.ModuleList(nn.Linear(width, 3 * width) for _ in channels)
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(x).permute(0, 2, 3, 1) for lateral, x in zip(self.lateral, features, strict=True)]
        projected = [
            project(level).unflatten(-1, (3, self.heads, -1)).unbind(3)
            for project, level in zip(self.project, levels, strict=True)
        ]
        queries, keys, values = zip(*projected, strict=True)
        attended = pyramid_attention(queries, keys, values, radius=self.radius, max_radius=self.radius)
        return [
            (level + out(found.flatten(3))).permute(0, 3, 1, 2)
            for level, out, found in zip(levels, self.out, attended, strict=True)
        ]


if __name__ == "__main__":
    backbone = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval()
    neck = PyramidNeck(backbone.feature_info.channels(), backbone.feature_info.reduction()).eval()
    with torch.no_grad():
        print([tuple(level.shape) for level in neck(backbone(torch.rand(1, 3, 128, 160)))])

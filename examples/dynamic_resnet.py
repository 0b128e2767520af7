"""A timm ResNet whose 3x3 convolutions become dynamic: each picture gets filters of its own.

python examples/dynamic_resnet.py
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from hamlet.ops import dynamic_conv2d


class DynamicConv2d(nn.Module):
    """A convolution whose filters are a mixture, by the picture's content, of a few banks.

    It begins as the convolution that it replaces: all banks are that one's filters.

    Source: Chen et al., "Dynamic Convolution: Attention over Convolution Kernels" (CVPR 2020).
    """

    def __init__(self, convolution: nn.Conv2d, banks: int = 4) -> None:
        super().__init__()
        self.stride, self.dilation, self.groups = convolution.stride[0], convolution.dilation[0], convolution.groups
        self.banks = nn.Parameter(convolution.weight.detach().repeat(banks, 1, 1, 1, 1))
        self.bias = convolution.bias
        self.choose = nn.Linear(convolution.in_channels, banks)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.choose(x.mean((2, 3))).softmax(1)
        weight = torch.einsum("bn,noikl->boikl", shares, self.banks)
        return dynamic_conv2d(x, weight, self.bias, stride=self.stride, dilation=self.dilation, groups=self.groups)


def is_same(convolution: nn.Conv2d) -> bool:
    """Whether a convolution pads as :func:`hamlet.ops.dynamic_conv2d` does, and has one stride and dilation."""
    square = len(set(convolution.stride)) == len(set(convolution.dilation)) == 1
    return square and convolution.padding_mode == "zeros" and convolution.padding == convolution.dilation


def make_dynamic(model: nn.Module, banks: int = 4) -> nn.Module:
    """Replace every 3x3 convolution of a model, in place, that pads as the operator does."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) and is_same(child):
            setattr(model, name, DynamicConv2d(child, banks))
        else:
            make_dynamic(child, banks)
    return model


if __name__ == "__main__":
    pictures = torch.rand(2, 3, 96, 128)
    resnet = timm.create_model("resnet18", num_classes=10).eval()
    with torch.no_grad():
        before = resnet(pictures)
        after = make_dynamic(resnet)(pictures)
    print(f"{tuple(after.shape)}, differs from the static ResNet by {float((after - before).abs().max()):.1e}")

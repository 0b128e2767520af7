"""The calls for which the report compiles the convolution's kernels: one of each class that the tables distinguish."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hamlet.kernels.problem import Problem

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
"""One of each size: fp16 compiles as bf16 does."""


@dataclass(frozen=True)
class Example:
    """Tensors without data, of a batch of 8 and 256 channels on 28 x 28 pixels."""

    dtype: torch.dtype
    channels_last: bool
    kernel: int = 3
    stride: int = 1
    per_group: int = 1
    precision: str = "tf32"

    def __str__(self) -> str:
        group = "" if self.per_group == 1 else f" {self.per_group} a group"
        layout = "channels_last" if self.channels_last else "contiguous"
        stride = " stride 2" if self.stride == 2 else ""
        exact = " ieee" if self.precision == "ieee" else ""
        return f"k{self.kernel}{group}{stride} {DTYPES[self.dtype]}{exact} {layout}"

    def problem(self) -> Problem:
        return Problem(None, None, (1, 2, 3, 4), 28, self.stride, 256 // self.per_group, self.precision)

    def images(self, stride: int = 1) -> Tensor:
        format = torch.channels_last if self.channels_last else torch.contiguous_format
        side = 28 // stride
        return torch.empty(8, 256, side, side, dtype=self.dtype, device="meta", memory_format=format)

    def weight(self) -> Tensor:
        size = (8, 256, self.per_group, self.kernel, self.kernel)
        return torch.empty(size, dtype=self.dtype, device="meta")

    def bias(self) -> Tensor:
        return torch.empty(8, 256, dtype=self.dtype, device="meta")


DEPTHWISE = [
    Example(dtype, channels_last, kernel, stride)
    for kernel, stride in ((3, 1), (3, 2), (5, 1), (7, 1))
    for dtype in DTYPES
    for channels_last in (False, True)
]

GROUPED = [
    *(
        Example(dtype, channels_last, stride=stride, per_group=per_group)
        for per_group, stride in ((4, 1), (8, 1), (8, 2), (16, 1), (32, 1))
        for dtype in DTYPES
        for channels_last in (False, True)
    ),
    *(Example(torch.float32, channels_last, per_group=8, precision="ieee") for channels_last in (False, True)),
]

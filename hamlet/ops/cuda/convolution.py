"""Per-sample depthwise convolution on the CUDA C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.cuda import library
from hamlet.ops.native.library import extents, view
from hamlet.ops.reference.convolution import memory_format

STEPS = 32
"""Dilations that travel with a launch; csrc/cuda/depthwise.h has room for so many."""
SIDE = 2**24
"""Of an image; positions are 32-bit numbers, and a dilation may take them some way out of it."""


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation_tensor: Tensor | None,
    extent: Tensor | None,
    dilation: Sequence[int],
    max_dilation: int,
    stride: int,
    groups: int,
    residual: bool,
) -> Tensor:
    """The output in input's dtype and memory format; one ``dilation`` a block, unless ``dilation_tensor`` rules."""
    layout = memory_format(input)
    input, weight = input.contiguous(memory_format=layout), weight.contiguous()
    height, width = ((size + stride - 1) // stride for size in input.shape[2:])
    shape = (input.shape[0], weight.shape[1], height, width)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)
    if output.numel() == 0:
        return output
    steps, extent = _on_device(dilation_tensor), extents(extent)
    tensors = (input, weight, bias, output, None, None, None, None, None, steps, extent)
    library.kernels.depthwise_forward(
        *map(view, tensors), *_numbers(input, dilation, max_dilation, stride, residual), *library.where(input)
    )
    return output


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation_tensor: Tensor | None,
    extent: Tensor | None,
    dilation: Sequence[int],
    max_dilation: int,
    stride: int,
    groups: int,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of input, weight and bias, each in its own dtype."""
    layout = memory_format(input)
    input, weight, grad = (
        input.contiguous(memory_format=layout),
        weight.contiguous(),
        grad.contiguous(memory_format=layout),
    )
    d_input, d_weight = torch.empty_like(input, memory_format=layout), torch.empty_like(weight)
    d_bias = None if bias is None else weight.new_empty(bias.shape)
    if grad.numel() == 0:
        for gradient in (d_input, d_weight, d_bias):
            if gradient is not None:
                gradient.zero_()
        return d_input, d_weight, d_bias
    steps, extent = _on_device(dilation_tensor), extents(extent)
    segments = _segments(input, weight, len(dilation), stride)
    planes = weight.shape[0] * weight.shape[1]
    parts = torch.empty(segments, planes + weight.numel(), dtype=torch.float32, device=input.device)
    tensors = (input, weight, None, None, grad, d_input, d_weight, d_bias, parts, steps, extent)
    library.kernels.depthwise_backward(
        *map(view, tensors), *_numbers(input, dilation, max_dilation, stride, residual), *library.where(input)
    )
    return d_input, d_weight, d_bias


def _on_device(dilation: Tensor | None) -> Tensor | None:
    return None if dilation is None else dilation.to(torch.int64).contiguous()


def _numbers(
    input: Tensor, dilation: Sequence[int], max_dilation: int, stride: int, residual: bool
) -> tuple[list[int], int, int, bool, bool]:
    # A dilation that takes every tap but the middle out of the grid is as good as any greater.
    greatest = min(max_dilation, max(input.shape[2:]))
    layout = memory_format(input) == torch.channels_last
    return [min(step, greatest) for step in dilation], greatest, stride, residual, layout


def _segments(input: Tensor, weight: Tensor, blocks: int, stride: int) -> int:
    """How many parts of the filters' gradient a backward leaves; 0 where the images are too wide for the kernels."""
    views = [view(input), view(weight), *(None,) * 9]
    numbers = _numbers(input, [1] * blocks, 1, stride, False)
    return int(library.kernels.depthwise_segments(*views, *numbers, *library.where(input)))


def why_not(
    input: Tensor, weight: Tensor, bias: Tensor | None, dilation_tensor: Tensor | None, *rest: Any
) -> list[str]:
    dilation, stride, groups = rest[1], rest[3], rest[4]
    found = library.reasons(input)
    if weight.shape[1] != groups or weight.shape[2] != 1 or input.shape[1] == 0:
        found.append("it takes depthwise convolutions (groups == Cin == Cout) alone")
    if dilation_tensor is None and len(dilation) > STEPS:
        found.append(f"it takes at most {STEPS} dilations as numbers, any number in a tensor")
    if max(input.shape[2:]) > SIDE:
        found.append(f"it takes images of at most {SIDE} pixels a side")
    if not found and input.numel() and not _segments(input, weight, len(dilation), stride):
        found.append("rows of such images, or filters of such size, do not fit in this GPU's shared memory")
    return found

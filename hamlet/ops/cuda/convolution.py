"""Per-sample depthwise and grouped convolution on the CUDA C++ kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.cuda import library
from hamlet.ops.native.library import extents
from hamlet.ops.reference.convolution import memory_format

STEPS = 32
"""Dilations that travel with a launch; csrc/cuda/image.h has room for so many."""
PIXELS = 2**29
"""Of an image, where its convolution is not depthwise; pieces of it are counted in 32-bit numbers."""
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
    arguments = *tensors, *_numbers(input, dilation, max_dilation, stride, residual)
    if _is_depthwise(input, weight):
        library.kernels.depthwise_forward(*arguments, *library.where(input))
    else:
        library.kernels.grouped_forward(*arguments, *library.where(input))
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
    arguments = *tensors, *_numbers(input, dilation, max_dilation, stride, residual)
    if _is_depthwise(input, weight):
        library.kernels.depthwise_backward(*arguments, *library.where(input))
    else:
        library.kernels.grouped_backward_input(*arguments, *library.where(input))
        library.kernels.grouped_backward_filters(*arguments, *library.where(input))
    return d_input, d_weight, d_bias


def _is_depthwise(input: Tensor, weight: Tensor) -> bool:
    return input.shape[1] == weight.shape[1] and weight.shape[2] == 1


def _on_device(dilation: Tensor | None) -> Tensor | None:
    return None if dilation is None else dilation.to(torch.int64).contiguous()


def _numbers(
    input: Tensor, dilation: Sequence[int], max_dilation: int, stride: int, residual: bool
) -> tuple[list[int], int, int, bool, bool, bool]:
    # A dilation that takes every tap but the middle out of the grid is as good as any greater.
    greatest = min(max_dilation, max(input.shape[2:]))
    layout = memory_format(input) == torch.channels_last
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return [min(step, greatest) for step in dilation], greatest, stride, residual, layout, tf32


def _segments(input: Tensor, weight: Tensor, blocks: int, stride: int) -> int:
    """How many parts of the filters' gradient a backward leaves; 0 where tiles do not fit in shared memory."""
    tensors = [input, weight, *(None,) * 9]
    numbers = _numbers(input, [1] * blocks, 1, stride, False)
    depthwise = _is_depthwise(input, weight)
    segments = library.kernels.depthwise_segments if depthwise else library.kernels.grouped_segments
    return int(segments(*tensors, *numbers, *library.where(input)))


def why_not(
    input: Tensor, weight: Tensor, bias: Tensor | None, dilation_tensor: Tensor | None, *rest: Any
) -> list[str]:
    dilation, stride = rest[1], rest[3]
    found = library.reasons(input)
    if input.shape[1] == 0:
        found.append("it takes no images without channels")
    if dilation_tensor is None and len(dilation) > STEPS:
        found.append(f"it takes at most {STEPS} dilations as numbers, any number in a tensor")
    if max(input.shape[2:]) > SIDE:
        found.append(f"it takes images of at most {SIDE} pixels a side")
    if not _is_depthwise(input, weight) and input.shape[2] * input.shape[3] > PIXELS:
        found.append(f"it takes images of at most {PIXELS} pixels, unless groups == Cin == Cout")
    if not found and input.numel() and weight.numel() and not _segments(input, weight, len(dilation), stride):
        depthwise = _is_depthwise(input, weight)
        what = "rows of such images, or filters of such size," if depthwise else "filters of such size"
        found.append(f"{what} do not fit in this GPU's shared memory")
    return found

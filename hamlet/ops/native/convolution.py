"""Per-sample dynamic convolution on the native kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.native.library import extents, module, reasons
from hamlet.ops.reference.convolution import memory_format


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
    batch, _, height, width = input.shape
    dilations, extent = _table(batch, dilation_tensor, dilation, max_dilation), extents(extent)
    size = batch, weight.shape[1], -(-height // stride), -(-width // stride)
    output = torch.empty(*size, dtype=input.dtype, memory_format=layout)
    module.convolution_forward(
        *(input, weight, bias, output, None, None, None, None, dilations, extent, stride, groups, residual),
        *(layout == torch.channels_last, torch.get_num_threads()),
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
    dilations, extent = _table(input.shape[0], dilation_tensor, dilation, max_dilation), extents(extent)
    d_input, d_weight = torch.empty_like(input, memory_format=layout), torch.empty_like(weight)
    d_bias = None if bias is None else bias.new_empty(bias.shape)
    module.convolution_backward(
        *(input, weight, None, None, grad, d_input, d_weight, d_bias, dilations, extent, stride, groups, residual),
        *(layout == torch.channels_last, torch.get_num_threads()),
    )
    return d_input, d_weight, d_bias


def _table(batch: int, tensor: Tensor | None, dilation: Sequence[int], max_dilation: int) -> Tensor:
    """The dilation of every sample and block, int64 (B, T)."""
    if tensor is None:
        return _steps(batch, tuple(dilation))
    return tensor.to(torch.int64).clamp(1, max_dilation)


@functools.lru_cache(maxsize=64)
def _steps(batch: int, dilation: tuple[int, ...]) -> Tensor:
    """Kept, since making it takes longer than a few pixels' convolution."""
    return torch.tensor(dilation, dtype=torch.int64).expand(batch, -1)


def why_not(input: Tensor, *rest: Any) -> list[str]:
    return reasons(input)

"""Per-sample dynamic convolution on the Triton kernels, which are imported when they are first used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops.reference.convolution import memory_format
from hamlet.ops.triton.library import device_of, interpreted, reasons


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
    from hamlet.kernels import depthwise, grouped

    height, width = ((size + stride - 1) // stride for size in input.shape[2:])
    shape = (input.shape[0], weight.shape[1], height, width)
    output = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))
    if output.numel() == 0:
        return output
    problem = _problem(dilation_tensor, extent, dilation, max_dilation, stride, groups)
    correlate = depthwise.correlate if _is_depthwise(weight, groups) else grouped.correlate
    with device_of(input):
        correlate(input, weight, bias, output, problem, residual=residual, gradient=False).run()
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
    from hamlet.kernels import depthwise, depthwise_weight, grouped

    d_input = torch.empty_like(input, memory_format=memory_format(input))
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    d_bias = None if bias is None else bias.new_empty(bias.shape)
    if grad.numel() == 0:
        for gradient in (d_input, d_weight, d_bias):
            if gradient is not None:
                gradient.zero_()
        return d_input, d_weight, d_bias
    problem = _problem(dilation_tensor, extent, dilation, max_dilation, stride, groups)
    is_depthwise = _is_depthwise(weight, groups)
    correlate = depthwise.correlate if is_depthwise else grouped.correlate
    reduce = depthwise_weight.reduce if is_depthwise else grouped.reduce
    with device_of(input):
        correlate(grad, weight, None, d_input, problem, residual=residual, gradient=True).run()
        for launch in reduce(input, grad, d_weight, d_bias, problem):
            launch.run()
    return d_input, d_weight, d_bias


def _problem(*arguments: Any) -> Any:
    from hamlet.kernels.problem import Problem

    # What PyTorch allows its own convolutions; it is "none" where nothing is allowed.
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return Problem(*arguments, precision="tf32" if tf32 else "ieee")


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return weight.shape[1] == groups and weight.shape[2] == 1


def why_not(input: Tensor, weight: Tensor, *rest: Any) -> list[str]:
    found = reasons(input)
    if interpreted and input.dtype == torch.bfloat16 and not _is_depthwise(weight, groups=rest[-2]):
        found.append("Triton's interpreter multiplies no bfloat16 matrices")
    if input.shape[1] == 0:
        found.append("it takes no input without channels")
    return found

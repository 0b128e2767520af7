"""Per-sample, per-group dynamic convolution in plain PyTorch: a sum over the taps of the kernel.

Each tap multiplies a shifted view of the input by one weight a channel pair. The gradient of the input is the same sum
with the shifts turned round, so nothing is scattered and the bits are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from hamlet.ops.reference.attention import accumulation_dtype

Shift = Callable[[Tensor, int, int], Tensor]
"""Reads planes (B, T, C, H, W) at a tap: (y + dy * dilation, x + dx * dilation) for every pixel, 0 outside."""


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
    dtype = accumulation_dtype(input.dtype)
    blocks = len(dilation)
    planes = _in_blocks(_masked(input.to(dtype), extent, 1), blocks)
    shift = _shift(dilation, dilation_tensor, max_dilation)
    filters = _filters(weight.to(dtype), blocks, groups)
    products = (
        _product(filters[..., i, j], shift(planes, dy, dx)[..., ::stride, ::stride]) for i, j, dy, dx in _taps(weight)
    )
    out = reduce(torch.add, products).flatten(1, 2)
    if bias is not None:
        out = out + bias.to(dtype)[:, :, None, None]
    if residual:
        out = out + input.to(dtype)
    out = _masked(out, extent, stride)
    # A copy, for nobody may change a view that came out of an autograd function in place.
    return out.to(input.dtype, copy=True, memory_format=memory_format(input))


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
    dtype = accumulation_dtype(input.dtype)
    blocks = len(dilation)
    valid = _masked(grad.to(dtype), extent, stride)
    planes = _in_blocks(_masked(input.to(dtype), extent, 1), blocks)
    d_out = _in_blocks(valid, blocks)
    spread = _spread(d_out, input.shape[2], input.shape[3], stride)
    shift = _shift(dilation, dilation_tensor, max_dilation)
    transposed = _filters(weight.to(dtype), blocks, groups).transpose(3, 4)
    products = (_product(transposed[..., i, j], shift(spread, -dy, -dx)) for i, j, dy, dx in _taps(weight))
    d_input = _masked(reduce(torch.add, products).flatten(1, 2), extent, 1)
    if residual:
        d_input = d_input + valid
    by_group = _pixels(d_out, groups // blocks)
    taps = [
        by_group @ _pixels(shift(planes, dy, dx)[..., ::stride, ::stride], groups // blocks).mT
        for _, _, dy, dx in _taps(weight)
    ]
    d_weight = torch.stack(taps, -1).reshape(weight.shape)
    d_bias = None if bias is None else valid.sum((2, 3)).to(bias.dtype)
    return d_input.to(input.dtype).contiguous(memory_format=memory_format(input)), d_weight.to(weight.dtype), d_bias


def memory_format(input: Tensor) -> torch.memory_format:
    """The format that the output keeps: channels_last where the input is stored so, contiguous otherwise."""
    last = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _taps(weight: Tensor) -> Iterator[tuple[int, int, int, int]]:
    height, width = weight.shape[-2:]
    for i in range(height):
        for j in range(width):
            yield i, j, i - height // 2, j - width // 2


def _filters(weight: Tensor, blocks: int, groups: int) -> Tensor:
    """(B, T, groups a block, outputs a group, inputs a group, kh, kw)."""
    return weight.unflatten(1, (blocks, groups // blocks, weight.shape[1] // groups))


def _in_blocks(planes: Tensor, blocks: int) -> Tensor:
    """(B, C, H, W) as (B, T, C / T, H, W)."""
    return planes.unflatten(1, (blocks, planes.shape[1] // blocks))


def _pixels(planes: Tensor, groups: int) -> Tensor:
    """(B, T, G * I, H, W) as (B, T, G, I, H * W)."""
    return planes.unflatten(2, (groups, planes.shape[2] // groups)).flatten(-2)


def _product(tap: Tensor, planes: Tensor) -> Tensor:
    """One tap: (B, T, G, O, I) on planes (B, T, G * I, H, W) -> (B, T, G * O, H, W)."""
    groups, outputs, inputs = tap.shape[2:]
    if outputs == inputs == 1:
        return tap * planes
    return (tap @ _pixels(planes, groups)).flatten(2, 3).unflatten(-1, planes.shape[-2:])


def _spread(grad: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The output's gradient on the input's grid, with zeros between where the stride skipped."""
    if stride == 1:
        return grad
    zeros = grad.new_zeros((*grad.shape[:3], grad.shape[3], stride, grad.shape[4], stride))
    zeros[..., :, 0, :, 0] = grad
    return zeros.flatten(5, 6).flatten(3, 4)[..., :height, :width]


def _masked(planes: Tensor, extent: Tensor | None, stride: int) -> Tensor:
    """``planes`` (B, C, H, W) with zeros beyond ceil(extent / stride), whatever stands there."""
    if extent is None:
        return planes
    limit = ((extent + stride - 1) // stride)[:, :, None]
    rows, columns = (torch.arange(size, device=planes.device) for size in planes.shape[2:])
    beyond = (rows >= limit[:, 0])[:, None, :, None] | (columns >= limit[:, 1])[:, None, None, :]
    return planes.masked_fill(beyond, 0)


def _shift(dilation: Sequence[int], dilation_tensor: Tensor | None, max_dilation: int) -> Shift:
    if dilation_tensor is None:
        return lambda planes, dy, dx: torch.cat(
            [_moved(planes[:, t : t + 1], dy * step, dx * step) for t, step in enumerate(dilation)], 1
        )
    steps = dilation_tensor.clamp(1, max_dilation)
    return lambda planes, dy, dx: _gathered(_gathered(planes, dy * steps, -2), dx * steps, -1)


def _moved(planes: Tensor, dy: int, dx: int) -> Tensor:
    height, width = planes.shape[-2:]
    dy, dx = max(-height, min(dy, height)), max(-width, min(dx, width))
    inside = planes[..., max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    return F.pad(inside, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))


def _gathered(planes: Tensor, offset: Tensor, axis: int) -> Tensor:
    """``planes`` (B, T, C, H, W) read ``offset`` (B, T) further along one axis: no value leaves the device."""
    size = planes.shape[axis]
    source = torch.arange(size, device=planes.device) + offset[..., None]
    shape = [*source.shape[:2], 1, 1, 1]
    shape[axis] = size
    index = source.clamp(0, size - 1).reshape(shape).expand(planes.shape)
    outside = ((source < 0) | (source >= size)).reshape(shape)
    return planes.gather(axis, index).masked_fill(outside, 0)

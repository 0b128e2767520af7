"""Per-sample, per-group dynamic convolution: the public operator, its checks and its registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hamlet.ops import backends, checks
from hamlet.ops.cuda import convolution as cuda
from hamlet.ops.native import convolution as native
from hamlet.ops.reference import convolution as reference
from hamlet.ops.registration import Operator, implement
from hamlet.ops.transforms import call
from hamlet.ops.triton import convolution as triton


def dynamic_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int | Sequence[int] | Tensor = 1,
    max_dilation: int | None = None,
    groups: int = 1,
    residual: bool = False,
    extent: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolution with one filter bank a sample, and a dilation for each block of groups.

    Equals, sample by sample and block by block, ``torch.nn.functional.conv2d(..., padding=dilation * (k - 1) / 2)``:
    'same' zero padding, so the output is ceil(H / stride) x ceil(W / stride).

    Args:
        input: (B, Cin, H, W), contiguous or channels_last, which the output keeps; any other strides are taken.
        weight: (B, Cout, Cin / groups, kh, kw), kh and kw odd. Differentiable, as input and bias are.
        bias: (Cout,) or (B, Cout).
        stride: 1 or 2.
        dilation: a number; or T numbers, T dividing groups, one for each of T equal blocks of groups; or an int tensor
            (B, T), read at run time, so that the content may choose it.
        max_dilation: bound of a dilation tensor, by default max(H, W), beyond which only the centre of the kernel can
            reach a pixel.
        groups: Cin and Cout are split into so many groups, as in ``conv2d``.
        residual: add input to the output in the same pass (Cin == Cout, stride 1).
        extent: int (B, 2), valid (height, width) of each sample: pixels outside are read as 0, whatever they hold, and
            outputs outside ceil(extent / stride) are written as 0.
        backend: name one of ``"reference"``, ``"native"``, ``"triton"``, ``"cuda"``; chosen by itself otherwise.

    Returns:
        (B, Cout, ceil(H / stride), ceil(W / stride)) in input's dtype and memory format. Sums are made in float32,
        or in float64 for float64 input. On a GPU float32 products of grouped filters are made in tf32 where
        ``torch.backends.cudnn`` allows convolutions that.

    Raises:
        ValueError: for a shape, size, device or number that does not fit, for dilations outside [1, max_dilation] and
            extents beyond the grid (seen on the CPU only; on a GPU they are clamped, as looking would cost a
            synchronisation), and for a backend asked for by name that cannot serve.
        TypeError: for anything that is not a floating-point tensor or a number where one is taken, and mixed dtypes
            (under autocast input, weight and bias are cast to one).

    Example:
        >>> import torch
        >>> weight = torch.randn(2, 8, 1, 3, 3, requires_grad=True)
        >>> out = dynamic_conv2d(torch.randn(2, 8, 9, 9), weight, dilation=[1, 2], groups=8, residual=True)
        >>> out.shape
        torch.Size([2, 8, 9, 9])

    Source: CECM, §3.3 of the HAMLET architecture; filters by content after Jia et al., "Dynamic Filter Networks"
    (NeurIPS 2016), per sample after Yang et al., "CondConv" (NeurIPS 2019).
    """
    arguments = prepare(
        input, weight, bias, stride=stride, dilation=dilation, max_dilation=max_dilation, groups=groups,
        residual=residual, extent=extent,
    )  # fmt: skip
    return call(operator.forward, *arguments, backends.requested(backend))


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int | Sequence[int] | Tensor = 1,
    max_dilation: int | None = None,
    groups: int = 1,
    residual: bool = False,
    extent: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Any, ...]:
    """Check the public operator's arguments and return those of the registered one, less the backend."""
    checks.is_tensor("input", input, ndim=4, shape="(B, Cin, H, W)")
    checks.is_tensor("weight", weight, ndim=5, shape="(B, Cout, Cin / groups, kh, kw)")
    checks.same_kind(input=input, weight=weight)
    batch, channels, height, width = input.shape
    groups = checks.whole_number("groups", groups)
    _, outputs, _, *kernel = weight.shape
    for name, count in (("Cin", channels), ("Cout", outputs)):
        if count % groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of {name} = {count}")
    wanted = (batch, None, channels // groups, None, None)
    checks.sizes("weight", weight, wanted, "(B, Cout, Cin / groups, kh, kw)")
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"weight: got a kernel of {kernel[0]} x {kernel[1]}, expected odd sizes")
    if checks.whole_number("stride", stride) > 2:
        raise ValueError(f"stride: got {stride}, expected 1 or 2")
    if not isinstance(residual, bool):
        raise TypeError(f"residual: got {type(residual).__name__}, expected a bool")
    if residual and (channels != outputs or stride != 1):
        raise ValueError(
            f"residual: got Cin = {channels}, Cout = {outputs}, stride = {stride}, expected Cin == Cout and stride 1"
        )
    if bias is not None:
        bias = _bias(bias, weight, batch, outputs)
    if extent is not None:
        checks.integer_tensor("extent", extent, (batch, 2), input, "(B, 2)")
    bound = max(height, width, 1) if max_dilation is None else checks.whole_number("max_dilation", max_dilation)
    steps, tensor = _dilation(dilation, groups, input)
    if tensor is None and max_dilation is not None and max(steps) > bound:
        raise ValueError(f"dilation: got {dilation}, expected at most max_dilation = {bound}")
    return input, weight, bias, tensor, extent, steps, bound, stride, groups, residual


def _bias(bias: object, weight: Tensor, batch: int, outputs: int) -> Tensor:
    if not isinstance(bias, Tensor):
        raise TypeError(f"bias: got {type(bias).__name__}, expected a tensor of shape (Cout,) or (B, Cout)")
    if tuple(bias.shape) not in ((outputs,), (batch, outputs)):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({outputs},) or ({batch}, {outputs})")
    checks.same_kind(weight=weight, bias=bias)
    return bias.expand(batch, outputs)


def _dilation(dilation: object, groups: int, input: Tensor) -> tuple[list[int], Tensor | None]:
    """The dilation of each block, as numbers; with a tensor, which then rules, they only say how many blocks."""
    if isinstance(dilation, Tensor):
        blocks = dilation.shape[1] if dilation.ndim == 2 else 1
        checks.integer_tensor("dilation", dilation, (input.shape[0], blocks), input, "(B, T)")
        steps, tensor = [1] * blocks, dilation
    elif isinstance(dilation, list | tuple):
        steps, tensor = [checks.whole_number("dilation", step, t) for t, step in enumerate(dilation)], None
        blocks = len(steps)
    else:
        steps, tensor, blocks = [checks.whole_number("dilation", dilation)], None, 1
    if blocks == 0 or groups % blocks:
        raise ValueError(f"dilation: got {blocks} blocks, expected a number that divides groups = {groups}")
    return steps, tensor


def _check_values(
    input: Tensor, weight: Tensor, bias: Any, dilation: Tensor | None, extent: Tensor | None, *rest: Any
) -> None:
    if extent is not None:
        checks.extent_values("extent", extent, *input.shape[2:])
    if dilation is not None:
        checks.dilation_values(dilation, rest[1])


def _fake(input: Tensor, weight: Tensor, bias: Any, dilation: Any, extent: Any, *rest: Any) -> Tensor:
    stride = rest[2]
    height, width = ((size + stride - 1) // stride for size in input.shape[2:])
    shape = (input.shape[0], weight.shape[1], height, width)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=reference.memory_format(input))


def _fake_gradient(tensor: Tensor) -> Tensor:
    kept = reference.memory_format(tensor) if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty_like(tensor, memory_format=kept)


operator = Operator(
    "dynamic_conv2d",
    arguments=(
        "Tensor input, Tensor weight, Tensor? bias, Tensor? dilation_tensor, Tensor? extent, int[] dilation, "
        "SymInt max_dilation, int stride, int groups, bool residual"
    ),
    results="Tensor",
    incoming="Tensor grad",
    kept="",
    outgoing="(Tensor, Tensor, Tensor)",
    differentiable=(0, 1, 2),
)

implement(
    operator,
    backends.Backend("reference", reference.forward, reference.backward, lambda *arguments: []),
    check_values=_check_values,
    fake=_fake,
    fake_gradient=_fake_gradient,
    kept=lambda result: (),
    incoming=lambda gradients, inputs: tuple(gradients),
)
backends.register(operator.name, backends.Backend("native", native.forward, native.backward, native.why_not))
backends.register(operator.name, backends.Backend("triton", triton.forward, triton.backward, triton.why_not))
backends.register(operator.name, backends.Backend("cuda", cuda.forward, cuda.backward, cuda.why_not))

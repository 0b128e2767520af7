"""Per-sample dynamic convolution as others would write it in PyTorch, a dilation for each block of groups.

Every peer is made for a :class:`Case` and then takes input (B, C, H, W) and weight (B, C, C / groups, k, k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.clock import DEVICE
from bench.peers.compiler import compiled

Convolve = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    side: int
    kernel: int = 3
    per_group: int = 1
    dilations: tuple[int, ...] = (1, 2, 3, 4)
    channels_last: bool = False
    stride: int = 1
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        group = "depthwise" if self.per_group == 1 else f"{self.per_group} a group"
        more = [
            *([f"dilation {self.dilations[0]}"] if len(self.dilations) == 1 else []),
            *(["channels_last"] if self.channels_last else []),
            *([f"stride {self.stride}"] if self.stride > 1 else []),
            *([str(self.dtype).removeprefix("torch.")] if self.dtype != torch.float32 else []),
        ]
        size = f"{self.side}x{self.side}, {self.kernel}x{self.kernel}"
        return ", ".join([f"B{self.batch} C{self.channels} {size} {group}", *more])

    def small(self) -> Case:
        return replace(self, batch=2, channels=max(32, 4 * self.per_group), side=9)

    @property
    def groups(self) -> int:
        return self.channels // self.per_group

    @property
    def out_side(self) -> int:
        return math.ceil(self.side / self.stride)

    def images(self, side: int) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (self.batch, self.channels, side, side)
        return torch.randn(shape, dtype=self.dtype, device=DEVICE).contiguous(memory_format=layout)

    def tensors(self) -> list[Tensor]:
        shape = (self.batch, self.channels, self.per_group, self.kernel, self.kernel)
        return [self.images(self.side), torch.randn(shape, dtype=self.dtype, device=DEVICE) / self.kernel]

    def operations(self) -> int:
        """Of the taps that lie in the image: the zeros around it are nobody's work."""
        filters = 2 * self.batch * self.channels // len(self.dilations) * self.per_group
        return filters * sum(self._taps(dilation) ** 2 for dilation in self.dilations)

    def _taps(self, dilation: int) -> int:
        """Taps in the image along one axis, over all outputs."""
        outputs = range(0, self.side, self.stride)
        offsets = [dilation * (tap - self.kernel // 2) for tap in range(self.kernel)]
        return sum(0 <= output + offset < self.side for output in outputs for offset in offsets)

    def blocks(self, input: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor, int]]:
        count = len(self.dilations)
        return list(zip(input.chunk(count, 1), weight.chunk(count, 1), self.dilations, strict=True))

    def padding(self, dilation: int) -> int:
        return dilation * (self.kernel // 2)


def grouped(case: Case) -> Convolve:
    """The grouped-convolution trick: the batch folded into the groups, one call a dilation."""

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        outs = []
        for x, w, dilation in case.blocks(input, weight):
            batch, channels, height, width = x.shape
            groups = batch * channels // case.per_group
            folded = x.reshape(1, batch * channels, height, width)
            out = F.conv2d(folded, w.flatten(0, 1), None, case.stride, case.padding(dilation), dilation, groups)
            outs.append(out.view(batch, channels, case.out_side, case.out_side))
        return torch.cat(outs, 1)

    return convolve


def loop(case: Case) -> Convolve:
    """A loop over the samples."""

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        outs = []
        for x, w, dilation in case.blocks(input, weight):
            groups = x.shape[1] // case.per_group
            samples = [
                F.conv2d(x[b : b + 1], w[b], None, case.stride, case.padding(dilation), dilation, groups)
                for b in range(len(x))
            ]
            outs.append(torch.cat(samples))
        return torch.cat(outs, 1)

    return convolve


def unfold(case: Case) -> Convolve:
    """Columns of every window, then one product."""

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        outs = []
        for x, w, dilation in case.blocks(input, weight):
            groups = x.shape[1] // case.per_group
            columns = F.unfold(x, case.kernel, dilation, case.padding(dilation), case.stride)
            columns = columns.unflatten(1, (groups, -1))
            filters = w.flatten(2).unflatten(1, (groups, case.per_group))
            outs.append((filters @ columns).flatten(1, 2).unflatten(2, (case.out_side, case.out_side)))
        return torch.cat(outs, 1)

    return convolve


def shifts(case: Case) -> Convolve:
    """Pad once, then a sum of shifted views times one weight each, for the compiler to fuse."""

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        outs = []
        for x, w, dilation in case.blocks(input, weight):
            groups = x.shape[1] // case.per_group
            pad = case.padding(dilation)
            padded = F.pad(x, (pad, pad, pad, pad)).unflatten(1, (groups, 1, case.per_group))
            filters = w.unflatten(1, (groups, case.per_group))
            total = 0
            for i in range(case.kernel):
                for j in range(case.kernel):
                    top, left = i * dilation, j * dilation
                    rows = slice(top, top + case.side, case.stride)
                    view = padded[..., rows, left : left + case.side : case.stride]
                    total = total + (filters[..., i, j, None, None] * view).sum(3)
            outs.append(total.flatten(1, 2))
        return torch.cat(outs, 1)

    return convolve


def _compiled(make: Callable[[Case], Convolve]) -> Callable[[Case], Convolve]:
    return lambda case: compiled(make(case))


def blended(case: Case, experts: int, *, compile: bool = False) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """timm's module for the whole of it: filters blended from experts by each sample's weights, then the convolution.

    Takes input, the weights of the experts (B, experts), and the experts' filters (experts, C * C / groups * k * k).
    """
    from timm.layers import CondConv2d

    [dilation] = case.dilations
    settings = {"stride": case.stride, "dilation": dilation, "groups": case.groups, "num_experts": experts}
    module = CondConv2d(
        case.channels, case.channels, case.kernel, padding=case.padding(dilation), **settings, device=DEVICE
    )

    def convolve(input: Tensor, routing: Tensor, filters: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": filters}, (input, routing))

    return compiled(convolve) if compile else convolve


PEERS: dict[str, Callable[[Case], Convolve]] = {
    "grouped trick": grouped,
    "loop over samples": loop,
    "unfold + product": unfold,
    "compiled grouped trick": _compiled(grouped),
    "compiled unfold": _compiled(unfold),
    "compiled shifts": _compiled(shifts),
}
STRONGEST = ("grouped trick", "compiled grouped trick", "compiled shifts")

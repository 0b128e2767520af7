"""Per-sample dynamic convolution as others would write it in PyTorch, a dilation for each block of groups.

Every peer is made for a :class:`Case` and then takes input (B, C, H, W) and weight (B, C, C / groups, k, k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def __str__(self) -> str:
        group = "depthwise" if self.per_group == 1 else f"{self.per_group} a group"
        order = ", channels_last" if self.channels_last else ""
        return f"B{self.batch} C{self.channels} {self.side}x{self.side}, {self.kernel}x{self.kernel} {group}{order}"

    @property
    def groups(self) -> int:
        return self.channels // self.per_group

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        input = torch.randn(self.batch, self.channels, self.side, self.side, dtype=dtype).contiguous(
            memory_format=layout
        )
        weight = torch.randn(self.batch, self.channels, self.per_group, self.kernel, self.kernel, dtype=dtype)
        return [input, weight / self.kernel]

    def operations(self) -> int:
        return 2 * self.batch * self.channels * self.side**2 * self.per_group * self.kernel**2

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
            out = F.conv2d(folded, w.flatten(0, 1), None, 1, case.padding(dilation), dilation, groups)
            outs.append(out.view(batch, channels, height, width))
        return torch.cat(outs, 1)

    return convolve


def loop(case: Case) -> Convolve:
    """A loop over the samples."""

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        outs = []
        for x, w, dilation in case.blocks(input, weight):
            groups = x.shape[1] // case.per_group
            samples = [
                F.conv2d(x[b : b + 1], w[b], None, 1, case.padding(dilation), dilation, groups) for b in range(len(x))
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
            columns = F.unfold(x, case.kernel, dilation, case.padding(dilation)).unflatten(1, (groups, -1))
            filters = w.flatten(2).unflatten(1, (groups, case.per_group))
            outs.append((filters @ columns).flatten(1, 2).unflatten(2, (case.side, case.side)))
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
                    view = padded[..., top : top + case.side, left : left + case.side]
                    total = total + (filters[..., i, j, None, None] * view).sum(3)
            outs.append(total.flatten(1, 2))
        return torch.cat(outs, 1)

    return convolve


def _compiled(make: Callable[[Case], Convolve]) -> Callable[[Case], Convolve]:
    return lambda case: torch.compile(make(case), dynamic=False)


PEERS: dict[str, Callable[[Case], Convolve]] = {
    "grouped trick": grouped,
    "loop over samples": loop,
    "unfold + product": unfold,
    "compiled grouped trick": _compiled(grouped),
    "compiled unfold": _compiled(unfold),
    "compiled shifts": _compiled(shifts),
}

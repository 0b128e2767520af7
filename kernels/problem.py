"""What all launches of one convolution share, and the strides of its tensors by the names of the kernels' arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A convolution less its tensors.

    ``steps`` holds a dilation for each block, unless ``dilation`` (B, T) rules; ``precision`` is how the matrix units
    take float32: ``"tf32"``, or ``"ieee"``, which leaves it to the other units.
    """

    dilation: Tensor | None
    extent: Tensor | None
    steps: Sequence[int]
    max_dilation: int
    stride: int
    groups: int
    precision: str

    def arguments(self, source: Tensor, target: Tensor, weight: Tensor) -> dict[str, Any]:
        """The arguments that all kernels take; one of source and target is as large as the convolution's input."""
        return {
            "dilation": None if self.dilation is None else self.dilation.contiguous(),
            "extent": None if self.extent is None else self.extent.contiguous(),
            "source_height": source.shape[2],
            "source_width": source.shape[3],
            "target_height": target.shape[2],
            "target_width": target.shape[3],
            "blocks": len(self.steps),
            "greatest": min(self.max_dilation, max(*source.shape[2:], *target.shape[2:])),
            "STEPS": (1,) if self.dilation is not None else tuple(self.steps),
            "HEIGHT": weight.shape[3],
            "WIDTH": weight.shape[4],
            "STRIDE": self.stride,
        }


def strides(name: str, tensor: Tensor | None, axes: Sequence[str]) -> dict[str, int]:
    """``tensor``'s strides as arguments ``name_axis``; zeros where there is no tensor."""
    steps = (0,) * len(axes) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": step for axis, step in zip(axes, steps, strict=True)}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether neighbours in memory are neighbouring channels rather than neighbouring columns."""
    return tensor.stride(1) < tensor.stride(3)

"""Every check of an operator's arguments, made before any work is done.

What shapes, dtypes and numbers can tell is checked when the operator is called, so it costs a few microseconds and is
traced away by ``torch.compile``. What depends on the values inside a tensor is checked by :func:`extent_values` and
:func:`dilation_values`, on the CPU alone: on a GPU the look would cost a synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def is_tensor(name: str, value: object, *, ndim: int, shape: str) -> Tensor:
    """Return ``value`` when it is a floating-point tensor of ``ndim`` dimensions, described to people as ``shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor of shape {shape}")
    if value.ndim != ndim:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {ndim} dimensions {shape}")
    _is_floating(name, value)
    return value


def _is_floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected float32, float16, bfloat16 or float64")


def same_kind(**tensors: Tensor) -> None:
    """Raise unless all tensors are on one device and, outside autocast, of one dtype."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        same_device(name, tensor, first_name, first)
        if tensor.dtype != first.dtype and not torch.is_autocast_enabled(first.device.type):
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected that of {first_name}, {first.dtype}")


def same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected that of {other_name}, {other.device}")


def sizes(name: str, tensor: Tensor, expected: Sequence[int | None], meaning: str) -> None:
    """Raise unless every size of ``tensor`` equals the expected one (None: any)."""
    for got, want in zip(tensor.shape, expected, strict=True):
        if want is not None and got != want:
            wanted = ", ".join("any" if want is None else str(want) for want in expected)
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected ({wanted}), that is {meaning}")


def number(name: str, value: object, *, least: float = -math.inf, above: float = -math.inf) -> float:
    """Return a finite float that is at least ``least`` and greater than ``above``."""
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        if -math.inf < value < math.inf and value >= least and value > above:
            return float(value)
        raise ValueError(f"{name}: got {value}, expected {_bounds(least, above)}")
    raise TypeError(f"{name}: got {type(value).__name__}, expected {_bounds(least, above)}")


def _bounds(least: float, above: float) -> str:
    return f"a finite number > {above}" if above > -math.inf else f"a finite number >= {least}"


def whole_number(name: str, value: object, index: int | None = None) -> int:
    """Return an int that is at least 1; it is called ``name``, or ``name[index]``."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 1:
            return value
        raise ValueError(f"{_called(name, index)}: got {value}, expected an int >= 1")
    raise TypeError(f"{_called(name, index)}: got {type(value).__name__}, expected an int >= 1")


def _called(name: str, index: int | None) -> str:
    return name if index is None else f"{name}[{index}]"


def broadcastable(name: str, value: object, shape: Sequence[int], like: Tensor, meaning: str) -> Tensor:
    """Return ``value`` expanded to ``shape`` (a view), when it is a floating-point tensor that broadcasts to it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor broadcastable to {meaning}")
    _is_floating(name, value)
    same_device(name, value, "query", like)
    trailing = tuple(shape)[len(shape) - value.ndim :] if value.ndim <= len(shape) else None
    if trailing is None or any(got not in (1, want) for got, want in zip(value.shape, trailing, strict=True)):
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected one broadcastable to {meaning} = {tuple(shape)}"
        )
    return value.expand(*shape)


def integer_tensor(name: str, value: object, shape: Sequence[int], like: Tensor, meaning: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int tensor of shape {meaning}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected an integer dtype")
    same_device(name, value, "the input", like)
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {meaning} = {tuple(shape)}")
    return value


def extent_values(name: str, extent: Tensor, height: int, width: int) -> None:
    """Raise when an extent on the CPU is not within 1 and the grid's (height, width)."""
    if extent.device.type != "cpu" or extent.numel() == 0:
        return
    grid = torch.tensor([height, width])
    if bool(((extent < 1) | (extent > grid)).any()):
        raise ValueError(
            f"{name}: got {extent.tolist()}, expected each (height, width) within (1, 1) and ({height}, {width})"
        )


def dilation_values(dilation: Tensor, max_dilation: int) -> None:
    """Raise when a dilation on the CPU is not within 1 and ``max_dilation``."""
    if dilation.device.type != "cpu" or dilation.numel() == 0:
        return
    if bool(((dilation < 1) | (dilation > max_dilation)).any()):
        raise ValueError(
            f"dilation: got {dilation.tolist()}, expected every entry within 1 and max_dilation = {max_dilation}"
        )

"""A kernel with its arguments and configuration: what a call runs, and what the report compiles ahead of time."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from hamlet.kernels.variants import Variant

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
ALIGNED = 16
"""Triton looks whether this divides a pointer or a number, and compiles wide accesses where it does."""


@dataclass(frozen=True)
class Configuration:
    """Sizes of a kernel's tiles, by the names of its arguments, and how a program runs."""

    tiles: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 1


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: the ``triton.jit`` function.
        programs: number of programs, from all arguments by name.
        arguments: all but the tiles' sizes, by name.
        choices: the table's configuration, then those that tuning tries beside it.
        key: names of the arguments for whose values tuning looks for the fastest configuration.
    """

    kernel: Any
    programs: Callable[[Mapping[str, Any]], int]
    arguments: Mapping[str, Any]
    choices: tuple[Configuration, ...]
    key: tuple[str, ...] = ()

    def run(self) -> None:
        """Launch it: as the table says or, with ``HAMLET_AUTOTUNE=1``, in the fastest way, which is kept on disk."""

        def grid(values: Mapping[str, Any]) -> tuple[int]:
            return (self.programs(values),)

        if os.environ.get("HAMLET_AUTOTUNE") == "1" and len(self.choices) > 1:
            _tuned(self.kernel, self.choices, self.key)[grid](**self.arguments)
        else:
            chosen = self.choices[0]
            tiles = dict(chosen.tiles)
            self.kernel[grid](**self.arguments, **tiles, num_warps=chosen.warps, num_stages=chosen.stages)

    def variant(self, name: str, *, matrix: bool = False) -> Variant:
        """What the launch compiles, its tensors taken to be aligned as PyTorch's allocator aligns them."""
        chosen = self.choices[0]
        values = {**self.arguments, **dict(chosen.tiles)}
        signature, constants, attributes = {}, {}, {}
        for parameter in self.kernel.params:
            value = values[parameter.name]
            signature[parameter.name] = kind = _kind(value, parameter)
            if kind == "constexpr":
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor) or (value % ALIGNED == 0 and not parameter.do_not_specialize):
                attributes[parameter.name] = ALIGNED
        return Variant(name, self.kernel, signature, constants, attributes, chosen.warps, chosen.stages, matrix)


def _kind(value: Any, parameter: Any) -> str:
    """The type that Triton gives an argument of a launch."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@functools.cache
def _tuned(kernel: Any, choices: Sequence[Configuration], key: Sequence[str]) -> Any:
    configurations = [
        triton.Config(dict(choice.tiles), num_warps=choice.warps, num_stages=choice.stages) for choice in choices
    ]
    return triton.autotune(configurations, key=list(key), cache_results=True)(kernel)

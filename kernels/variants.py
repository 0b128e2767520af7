"""One configuration of one kernel, as the launch tables choose it and as the ahead-of-time report compiles it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that its compilation depends on.

    Every module of this package with a kernel yields, from a function ``variants()``, each configuration that its
    launch table can choose, for the shapes that the table distinguishes.

    Args:
        name: tells the configuration from all others to a reader: ``depthwise k3 bf16 channels_last``.
        function: the ``triton.jit`` function.
        signature: type of every argument by name, ``"*fp16"``, ``"i32"``, ``"constexpr"``...
        constants: value of every ``constexpr`` argument by name.
        attributes: what is known of run-time arguments, by name: ``{"input": 16}`` says that 16 divides it, as a
            launch sees for pointers that PyTorch's allocator gave and for sizes that are multiples of 16.
        warps: ``num_warps`` of the launch.
        stages: ``num_stages`` of the launch.
        matrix: whether the kernel must use the matrix units.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    attributes: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    matrix: bool = False

"""The compiled module ``hamlet._native``: loading it, the instruction set, and tensors arranged as it takes them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

# The module's OpenMP runtime is the one that torch has loaded, so torch must come first.
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Those of queries and images, and of all that has a fraction; extents and dilations are int64."""

WHY_NOT_BUILT = Path(__file__).parents[2] / "_native.txt"
"""Where the build leaves its reason when it could not make the module."""


def _load() -> tuple[Any, str | None]:
    try:
        module = importlib.import_module("hamlet._native")
    except ModuleNotFoundError as error:
        why = WHY_NOT_BUILT.read_text().strip() if WHY_NOT_BUILT.exists() else str(error)
        return None, f"the native kernels were not built: {why}"
    except ImportError as error:
        return None, f"the native kernels cannot be loaded: {error.__cause__ or error}"
    asked = os.environ.get("HAMLET_CPU_ISA")
    if asked:
        if asked not in module.instruction_sets():
            known = ", ".join(module.instruction_sets())
            return None, f"HAMLET_CPU_ISA: got {asked!r}, expected one of those that this processor has: {known}"
        module.use_instruction_set(asked)
    return module, None


module, why_missing = _load()
"""``hamlet._native``, or None and the reason."""


def reasons(tensor: Tensor) -> list[str]:
    """Why the native kernels cannot take this tensor, and those that are like it, whatever the operator."""
    found = [] if why_missing is None else [why_missing]
    if not tensor.is_cpu:
        found.append(f"it runs on the CPU, the tensors are on {tensor.device.type}")
    if tensor.dtype not in DTYPES:
        found.append(f"it takes no {tensor.dtype}")
    return found


def channels_together(tensor: Tensor) -> Tensor:
    """``tensor`` with its last dimension's elements next to each other, copied if they are not."""
    return tensor if tensor.stride()[-1] == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def extents(extent: Tensor | None) -> Tensor | None:
    return None if extent is None else extent.to(torch.int64).contiguous()

"""The compiled CUDA kernels ``hamlet._native.cuda``: whether they are there, whom they serve, and where they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hamlet.ops.native import library as native

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

kernels: Any = getattr(native.module, "cuda", None)
"""The kernels, or None. The tests put those in its place that are executed on the CPU."""


def why_missing() -> str | None:
    if kernels is not None:
        return None
    reason = getattr(native.module, "why_no_cuda", None) or native.why_missing
    return f"the CUDA kernels were not built: {reason}"


def reasons(tensor: Tensor) -> list[str]:
    """Why the kernels cannot take this tensor, and those that are like it, whatever the operator."""
    missing = why_missing()
    found = [] if missing is None else [missing]
    wanted = "cuda" if kernels is None else kernels.device_type
    if tensor.device.type != wanted:
        found.append(f"it runs on a GPU, the tensors are on {tensor.device.type}")
    elif wanted == "cuda" and (why := _why_not_device(tensor.device)):
        found.append(why)
    if tensor.dtype not in DTYPES:
        found.append(f"it takes no {tensor.dtype}")
    return found


def _why_not_device(device: torch.device) -> str | None:
    """Code for 8.0 runs on 8.0 to 8.9; code for 9.0a on nothing but 9.0."""
    if kernels is None:
        return None
    capability = torch.cuda.get_device_capability(device)
    built = [int(architecture.rstrip("af")) for architecture in kernels.architectures.split()]
    if any(capability[0] == number // 10 and capability[1] >= number % 10 for number in built):
        return None
    return f"the CUDA kernels were built for compute capability {kernels.architectures}, this GPU has {capability}"


def where(tensor: Tensor) -> tuple[int, int]:
    """The device and the stream that kernels on ``tensor`` run on."""
    if not tensor.is_cuda:
        return 0, 0
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream

"""What every Triton kernel asks before it is used: whether Triton is there, interpreted or not, and whom it serves."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager
from importlib.metadata import version

import torch
from packaging.version import Version
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

BLACKWELL = Version("3.8")
"""The first Triton that compiles every kernel for compute capability 10."""

installed = importlib.util.find_spec("triton") is not None

interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
"""Whether Triton's interpreter stands in for a GPU; Triton reads the variable as the kernels are imported."""


def reasons(tensor: Tensor) -> list[str]:
    """Why the Triton kernels cannot take this tensor, and those that are like it, whatever the operator."""
    found = []
    if not installed:
        found.append("triton is not installed")
    if interpreted:
        if not tensor.is_cpu:
            found.append(f"Triton's interpreter takes CPU tensors alone, these are on {tensor.device.type}")
    elif not tensor.is_cuda:
        found.append(f"it runs on a GPU (on the CPU with TRITON_INTERPRET=1), the tensors are on {tensor.device.type}")
    elif (capability := torch.cuda.get_device_capability(tensor.device)) < (8, 0):
        found.append("it needs a GPU of compute capability 8.0 or newer")
    elif capability >= (10, 0) and installed and Version(version("triton")) < BLACKWELL:
        # Older ones abort while they compile the attention for it.
        found.append(f"compute capability {capability[0]}.{capability[1]} needs Triton {BLACKWELL} or newer")
    if tensor.dtype not in DTYPES:
        found.append(f"it takes no {tensor.dtype}")
    return found


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the GPU that holds ``tensor`` the current one, which Triton launches on."""
    return torch.cuda.device_of(tensor)

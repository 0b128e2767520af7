"""The CUDA kernels' tests: the kernels' sources are built for the CPU and executed there, every access checked."""

from __future__ import annotations

import pytest
import torch

from hamlet.ops import use_backend
from hamlet.ops.cuda import library
from tests.cuda import build
from tests.ops.conftest import poisoned_memory  # noqa: F401


@pytest.fixture(scope="session")
def kernels_on_cpu():
    if build.compiler is None:
        pytest.skip("there is no C++ compiler to build the kernels for the CPU with")
    return build.kernels()


@pytest.fixture
def cuda_backend(kernels_on_cpu, monkeypatch):
    """Run the operators on the CUDA kernels, executed on the CPU."""
    monkeypatch.setattr(library, "kernels", kernels_on_cpu)
    with use_backend("cuda"):
        yield


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")

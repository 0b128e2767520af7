"""The kernels' tests: those of numerics in Triton's interpreter, which must have a process of its own; the others not.

``tests/test_kernels.py`` runs the interpreted ones as part of the ordinary suite.
"""

from __future__ import annotations

import pytest
import torch

from hamlet.ops.triton.library import installed, interpreted
from tests.ops.conftest import poisoned_memory  # noqa: F401

if not installed:
    collect_ignore_glob = ["test_*.py"]
elif interpreted:
    collect_ignore_glob = ["test_*_on_gpu.py", "test_*tuning.py", "test_launch.py", "test_report.py"]
else:
    collect_ignore_glob = ["test_attention.py", "test_convolution.py", "test_pyramid.py"]


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")

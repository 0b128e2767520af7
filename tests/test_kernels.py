from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from packaging.version import Version

triton = pytest.importorskip("triton")

TRITON, NUMPY = (Version(module.__version__) for module in (triton, np))


@pytest.mark.skipif(
    Version("3.7") > TRITON and Version("2.4") <= NUMPY, reason="Triton 3.6's interpreter fails with NumPy 2.4"
)
@pytest.mark.skipif(
    Version("3.9") <= TRITON < Version("3.10"),
    reason="Triton 3.9's interpreter makes numbers of a scalar truth that meets a block of them, and refuses the mask",
)
def test_kernels_agree_with_the_reference_in_the_interpreter():
    """Triton decides as it is imported whether it interprets, so these tests have a process of their own."""
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]

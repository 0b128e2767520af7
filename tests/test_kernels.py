from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from packaging.version import Version

triton = pytest.importorskip("triton", reason="Triton is made for Linux alone")

TRITON, NUMPY = (Version(module.__version__) for module in (triton, np))


@pytest.mark.skipif(
    Version("3.7") > TRITON and Version("2.4") <= NUMPY, reason="Triton 3.6's interpreter fails with NumPy 2.4"
)
@pytest.mark.skipif(
    Version("3.9") <= TRITON < Version("3.10"),
    reason="Triton 3.9's interpreter makes numbers of a scalar truth that meets a block of them, and refuses the mask",
)
def test_kernels_agree_with_the_reference_in_the_interpreter():
    """Triton decides as it is imported whether it interprets, so these tests have processes of their own.

    There are two, with a thread each: an interpreter leaves every other core idle.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    longest = "tests/kernels/test_attention.py"

    def run(*chosen: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, longest), pool.submit(run, "tests/kernels", "--ignore", longest)]
    for each in runs:
        done = each.result()
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hamlet.ops.triton.library import installed


@pytest.mark.skipif(not installed, reason="triton is not installed")
def test_kernels_agree_with_the_reference_in_the_interpreter():
    """Triton decides as it is imported whether it interprets, so these tests have a process of their own."""
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-1000:]

"""What nvcc made of the kernels, read from the module that was built: no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hamlet.ops.cuda import library

EXPECTED = 3 * 4 * 2 * 2 + 3
"""Three dtypes, four sizes of filters, two layouts, forward and backward; and the sums of parts."""


@pytest.fixture(scope="module")
def disassembler():
    if library.kernels is None:
        pytest.skip(str(library.why_missing()))
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="there is no cuobjdump to read the kernels with")
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(found)


def read(disassembler, option, *more):
    from hamlet import _native

    command = [disassembler, option, *more, _native.__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_nothing_is_spilled_and_there_is_no_local_memory(disassembler):
    usage = re.findall(
        r"Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", read(disassembler, "-res-usage")
    )
    assert len(usage) == EXPECTED * len(library.kernels.architectures.split())
    assert [(name, stack, local) for name, _, stack, local in usage if int(stack) or int(local)] == []
    # Registers are what bounds the warps of a multiprocessor: two blocks of 128 threads must have room at least.
    assert max(int(registers) for _, registers, _, _ in usage) <= 255


def test_images_are_copied_16_bytes_at_a_time(disassembler):
    code = read(disassembler, "-sass", "-arch", f"sm_{library.kernels.architectures.split()[-1]}")
    kernels = re.split(r"Function : ", code)[1:]
    staging = [kernel for kernel in kernels if "depthwise" in kernel.split("\n", 1)[0]]
    assert len(staging) == EXPECTED - 3
    assert all(re.search(r"LDGSTS\.E\.BYPASS\.128", kernel) for kernel in staging)

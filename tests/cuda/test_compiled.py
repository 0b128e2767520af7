"""What nvcc made of the kernels, read from the module that was built: no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hamlet.ops.cuda import library

DEPTHWISE = 3 * 4 * 2 * 2
"""Three dtypes, four sizes of filters, two layouts, forward and backward."""
ATTENTION = 4 * 4 * 3
"""Three dtypes and tf32, four sizes of heads, forward and both passes of the backward."""
GROUPED = 4 * (3 + 2)
"""Three dtypes and tf32; three widths of a group's outputs, and two for the filters' gradient."""
EXPECTED = DEPTHWISE + GROUPED + 3 + ATTENTION
"""With the sums of parts."""


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


@pytest.fixture(scope="module")
def code(disassembler):
    """The instructions of every kernel, by its mangled name."""
    listing = read(disassembler, "-sass", "-arch", f"sm_{library.kernels.architectures.split()[-1]}")
    return dict(part.split("\n", 1) for part in re.split(r"Function : ", listing)[1:])


@pytest.mark.parametrize(
    ("operator", "count"), [("depthwise", DEPTHWISE), ("grouped", GROUPED), ("attention", ATTENTION)]
)
def test_tiles_are_copied_16_bytes_at_a_time(code, operator, count):
    staging = [body for name, body in code.items() if operator in name]
    assert len(staging) == count
    assert all(re.search(r"LDGSTS\.E\.BYPASS\.128", body) for body in staging)


def test_depthwise_tiles_are_boxes_of_the_bulk_copy_engine_where_there_is_one(code):
    newest = int(library.kernels.architectures.split()[-1].rstrip("af"))
    staging = [body for name, body in code.items() if "depthwise" in name]
    assert all(("UTMALDG.5D" in body) == (newest >= 90) for body in staging)


def test_products_are_on_the_matrix_units_but_for_plain_float32(code):
    for name, body in code.items():
        if not re.search("attention|grouped", name):
            continue
        is_half = "Float16" in name
        plain = not is_half and "Lb0E" in name
        assert ("HMMA.16816.F32" in body) == is_half, name
        assert ("HMMA.1688.F32.TF32" in body) == (not is_half and not plain), name
        assert ("LDSM.16.M" in body) == is_half, name

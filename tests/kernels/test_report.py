from __future__ import annotations

import re
from pathlib import Path

import pytest

from hamlet.kernels.compiled import MULTIPROCESSORS, Multiprocessor, compile_variant, resident_warps
from hamlet.kernels.report import all_variants, line

TABLE = (Path(__file__).parents[2] / "docs" / "kernels-report.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def compiled():
    return [(variant, compile_variant(variant, 90)) for variant in all_variants()]


def test_nothing_is_spilled(compiled):
    # With 256 channels the rows of a tile's queries and of their outputs' gradients fill half of the registers alone.
    allowed = re.compile("attention queries bf16 256 channels")
    spilled = [variant.name for variant, code in compiled if code.stack or code.local]
    assert [name for name in spilled if not allowed.search(name)] == []


def test_matrix_units_are_used_where_there_is_a_product(compiled):
    assert [variant.name for variant, code in compiled if variant.matrix and not code.matrix] == []


def test_main_operands_are_loaded_16_bytes_at_a_time(compiled):
    narrow = {variant.name for variant, code in compiled if not {0, 128} & code.loads.keys()}
    # The columns of a contiguous image are read wherever the taps reach, which no alignment is known of; four halves
    # are all that a group has; and large depthwise filters leave registers for no more.
    allowed = re.compile(r"contiguous|4 a group.*bf16|depthwise k[57] bf16|sum of parts")
    assert [name for name in sorted(narrow) if not allowed.search(name)] == []


def test_the_table_is_what_this_tree_compiles(compiled):
    import triton

    if f"Triton {triton.__version__}" not in TABLE[0]:
        pytest.skip(f"the table was made with another Triton than {triton.__version__}")
    start = next(number for number, text in enumerate(TABLE) if text.startswith("sm_90"))
    kept = TABLE[start:]
    missing = [text for variant, code in compiled if (text := line(variant, code)) not in kept]
    assert missing == [], "write it anew with: python -m hamlet.kernels.report --arch 90 > docs/kernels-report.txt"


def test_names_tell_variants_apart():
    names = [variant.name for variant in all_variants()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(32, 0, 4, 64), (33, 0, 4, 48), (255, 0, 4, 8), (32, 100 * 1024, 8, 16), (16, 0, 1, 32)],
)
def test_resident_warps(registers, shared, warps, resident):
    # By hand: 65536 / (40 * 32) = 51 warps, 12 programs; 65536 / (256 * 32) = 8 warps; 228 / 101 = 2 programs;
    # 32 programs at most.
    assert resident_warps(MULTIPROCESSORS[90], registers, shared, warps) == resident
    assert MULTIPROCESSORS[90] == Multiprocessor()

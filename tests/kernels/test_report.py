from __future__ import annotations

import ast
import itertools
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hamlet.kernels.compiled import MULTIPROCESSORS, Multiprocessor, compile_variant, resident_warps
from hamlet.kernels.report import COLUMNS, NAME, all_variants, line

TABLE = (Path(__file__).parents[2] / "docs" / "kernels-report.txt").read_text().splitlines()
ARCHITECTURES = (80, 90, 100)
EVERY = 12
"""Of the table's other architectures, one line in so many is compiled anew: all would take minutes."""
SPILLED = {
    80: {"attention keys bf16 32 channels 4 levels", "grouped filters' gradient k3 4 a group fp32 channels_last"},
    90: set(),
    100: {"depthwise filters' gradient k5 bf16 channels_last"},
}
"""Those that spill two to nine registers on that architecture alone; what mends it costs the others more."""


@pytest.fixture(scope="module")
def one_parser_at_a_time():
    """Python 3.11 counts the depth of all threads' syntax trees as one, and fails if another's changes it meanwhile."""
    parse, alone = ast.parse, threading.Lock()

    def parse_alone(*args, **options):
        with alone:
            return parse(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ast, "parse", parse_alone)
        yield


@pytest.fixture(scope="module")
def compiled(one_parser_at_a_time):
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it is other programs' work
        return list(pool.map(lambda variant: (variant, compile_variant(variant, 90)), all_variants()))


@pytest.fixture
def of_the_tables_triton():
    import triton

    if f"Triton {triton.__version__}" not in TABLE[0]:
        pytest.skip(f"the table was made with another Triton than {triton.__version__}")


def kept(arch):
    """The table's lines for an architecture."""
    start = next(number for number, text in enumerate(TABLE) if re.match(rf"sm_{arch}\b", text))
    return list(itertools.takewhile(str.strip, TABLE[start + 1 :]))


@pytest.mark.usefixtures("of_the_tables_triton")
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_is_spilled(arch):
    figures = {text[:NAME].rstrip(): text[NAME:].split() for text in kept(arch)}
    stack, local = COLUMNS.index("stack"), COLUMNS.index("local")
    assert {name for name, values in figures.items() if int(values[stack]) or int(values[local])} == SPILLED[arch]
    assert figures.keys() == {variant.name for variant in all_variants()}


def test_matrix_units_are_used_where_there_is_a_product(compiled):
    assert [variant.name for variant, code in compiled if variant.matrix and not code.matrix] == []


def test_main_operands_are_loaded_16_bytes_at_a_time(compiled):
    narrow = {variant.name for variant, code in compiled if not {0, 128} & code.loads.keys()}
    # The columns of a contiguous image are read wherever the taps reach, which no alignment is known of; four halves
    # are all that a group has; and large depthwise filters leave registers for no more.
    allowed = re.compile(r"contiguous|4 a group.*bf16|depthwise k[57] bf16|sum of parts")
    assert [name for name in sorted(narrow) if not allowed.search(name)] == []


@pytest.mark.usefixtures("of_the_tables_triton")
def test_the_table_is_what_this_tree_compiles(compiled):
    some = list(all_variants())[::EVERY]
    found = {90: compiled, **{arch: [(each, compile_variant(each, arch)) for each in some] for arch in (80, 100)}}
    missing = [text for arch in found for each in found[arch] if (text := line(*each)) not in kept(arch)]
    assert missing == [], "write it anew with: python -m hamlet.kernels.report > docs/kernels-report.txt"


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

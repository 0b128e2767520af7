"""The matrix units' built-ins, lane by lane after the tables of PTX's manual ("Matrix Fragments for mma.m16n8k16 with
floating point type", "... for mma.m16n8k8", "Warp-level matrix load instruction: ldmatrix"), against plain products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda import build

NUMBERS = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
"""As csrc/view.h numbers them."""


@pytest.fixture(scope="module")
def units():
    if build.compiler is None:
        pytest.skip("there is no C++ compiler to build the kernels for the CPU with")
    return build.load("cuda_matrix", [Path(__file__).with_name("matrix.cu")])


def registers(values):
    """(32 lanes, elements) as registers of four bytes, viewed as float32, which the kernels take."""
    return values.contiguous().view(torch.float32)


def fragments(left, right, sums):
    """What each lane holds of (16, K), (K, 8) and (16, 8): row or column ``group``, and neighbours by ``member``."""
    lefts, rights, totals = [], [], []
    for lane in range(32):
        group, member = lane // 4, lane % 4
        if left.dtype == torch.float32:
            lefts += [
                left[group, member],
                left[group + 8, member],
                left[group, member + 4],
                left[group + 8, member + 4],
            ]
            rights += [right[member, group], right[member + 4, group]]
        else:
            for column in (2 * member, 2 * member + 8):
                for row in (group, group + 8):
                    lefts += [left[row, column], left[row, column + 1]]
                rights += [right[column, group], right[column + 1, group]]
        for row in (group, group + 8):
            totals += [sums[row, 2 * member], sums[row, 2 * member + 1]]
    return [torch.stack(values).reshape(32, -1) for values in (lefts, rights, totals)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_products_of_fragments_are_matrix_products(units, dtype):
    depth = 8 if dtype == torch.float32 else 16
    left, right, sums = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.randn(16, 8)
    *operands, totals = fragments(left, right, sums)
    units.product(*map(registers, operands), totals, NUMBERS[dtype], False)
    wanted = sums.double() + left.double() @ right.double()
    (wanted,) = fragments(left, right, wanted)[2:]
    torch.testing.assert_close(totals.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_lane_that_does_not_arrive_is_caught(units):
    *operands, totals = fragments(torch.ones(16, 8), torch.ones(8, 8), torch.ones(16, 8))
    with pytest.raises(RuntimeError, match="diverges at a barrier"):
        units.product(*map(registers, operands), totals, NUMBERS[torch.float32], True)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_by_rows_or_by_columns(units, transposed):
    rows = torch.arange(32 * 8, dtype=torch.float16).reshape(32, 8)
    found = torch.empty(32, 8, dtype=torch.float16)
    units.load_matrices(rows, registers(found), transposed)
    for lane in range(32):
        for number, matrix in enumerate(rows.reshape(4, 8, 8)):
            row = (matrix.T if transposed else matrix)[lane // 4]
            assert found[lane, 2 * number : 2 * number + 2].tolist() == row[lane % 4 * 2 :][:2].tolist()


def test_tf32_keeps_ten_bits_and_rounds_ties_away(units):
    def rounded(value):
        return torch.tensor([units.tf32(value)], dtype=torch.int64).to(torch.int32).view(torch.float32).item()

    assert rounded(1 + 2**-10) == 1 + 2**-10
    assert rounded(1 + 2**-11) == 1 + 2**-10
    assert rounded(-1 - 2**-11 + 2**-20) == -1
    assert rounded(float("inf")) == float("inf")

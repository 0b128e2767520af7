"""The checked execution itself: a right kernel passes, and every one that is broken on purpose is caught."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hamlet.ops.native.library import view
from tests.cuda import build

SOURCE = Path(__file__).with_name("faults.cu")
FAULTS = {
    name.lower().replace("_", " "): number
    for number, name in enumerate(re.findall(r"^    (\w+),$", SOURCE.read_text(), re.MULTILINE))
}
CAUGHT = {
    "no barrier after staging": "which no thread has written",
    "no barrier before restaging": "without a barrier between",
    "halo one short": "which no thread has written",
    "halo one long": "without a barrier between|before the copy to it was waited for",
    "waits for the other stage": "before the copy to it was waited for",
    "reads the other stage": "before the copy to it was waited for",
    "never waits": "before the copy to it was waited for",
    "barrier in a branch": r"diverges at a barrier: thread \d+ waits at .*faults.cu:\d+",
    "shuffle in a branch": "diverges at a barrier",
    "no warp barrier": "which no thread has written",
    "two threads write one result": "writes global memory at byte .* without a barrier between",
    "writes past the result": "writes global memory out of bounds, at byte 400 of 400",
    "reads past the input": "reads global memory out of bounds",
    "misaligned copy": "at an address that is no multiple of 16",
    "blocks share a result": "writes global memory .*, which thread .* of block 0 touched without a barrier between",
}


@pytest.fixture(scope="module")
def faults():
    if build.compiler is None:
        pytest.skip("there is no C++ compiler to build the kernels for the CPU with")
    return build.load("cuda_faults", [SOURCE])


def smooth(faults, number, count=200):
    input, output, sums = torch.randn(count), torch.empty(count), torch.empty(8)
    faults.smooth(number, *map(view, (input, output, sums)))
    return input, output, sums


def test_a_right_kernel_passes(faults):
    input, output, sums = smooth(faults, FAULTS["none"])
    torch.testing.assert_close(output, F.conv1d(F.pad(input, (4, 4))[None, None], torch.ones(1, 1, 9))[0, 0])
    torch.testing.assert_close(sums, F.pad(output, (0, 56)).view(8, 32).sum(1))


@pytest.mark.parametrize("fault", CAUGHT)
def test_a_broken_kernel_is_caught(faults, fault):
    count = 100 if fault in ("writes past the result", "reads past the input") else 200
    with pytest.raises(RuntimeError, match=rf"^smoothing, block \d+, thread \d+: .*({CAUGHT[fault]})"):
        smooth(faults, FAULTS[fault], count)


def test_every_fault_has_its_test():
    assert set(FAULTS) == {"none", *CAUGHT}

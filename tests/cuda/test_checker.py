"""The checked execution itself: a right kernel passes, and every one that is broken on purpose is caught."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.cuda import build

SOURCE = Path(__file__).with_name("faults.cu")


def numbered(kind):
    """The faults of an enumeration in the source, by name."""
    names = re.search(rf"^enum {kind} {{\n(.*?)}};", SOURCE.read_text(), re.MULTILINE | re.DOTALL)[1]
    return {name.lower().replace("_", " "): number for number, name in enumerate(re.findall(r"\w+", names))}


FAULTS, OF_BOXES = numbered("Fault"), numbered("BoxFault")
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
CAUGHT_OF_BOXES = {
    "box not waited for": "before the copy to it was waited for",
    "box waited for by one thread": "without a barrier between",
    "box of the other stage": "before the copy to it was waited for",
    "box never copied": r"waits at .*faults.cu:\d+ for a box that no thread copies",
    "no barrier after initialising": "which no thread has written|without a barrier between",
    "no barrier before the next box": "for a box that no thread copies",  # as the first thread is done with all of them
    "next box on a busy barrier": "copies a box before the last of the same barrier was waited for",
    "too few bytes expected": "expects 752 bytes of a box that has 768",
    "box misplaced": "copies a box to an address that is no multiple of 128",
    "box past shared memory": "copies to shared memory out of bounds",
    "box left under way": "ends before a box was waited for",
    "no fence before the next box": "copies a box to shared memory .* touched without a fence since",
    "stage cleared without a fence": "copies a box to shared memory .* touched without a fence since",
    "barrier written over": "uses a barrier of boxes that something else was written over",
    "initialised twice": "initialises a barrier of boxes once more",
}


@pytest.fixture(scope="module")
def faults():
    if build.compiler is None:
        pytest.skip("there is no C++ compiler to build the kernels for the CPU with")
    return build.load("cuda_faults", [SOURCE])


def smooth(faults, number, count=200):
    input, output, sums = torch.randn(count), torch.empty(count), torch.empty(8)
    faults.smooth(number, input, output, sums)
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


def smooth_columns(faults, number):
    input, output = torch.randn(5, 64), torch.empty(5, 64)
    faults.smooth_columns(number, input, output)
    return input, output


def test_a_right_kernel_of_boxes_passes(faults):
    input, output = smooth_columns(faults, OF_BOXES["no fault of boxes"])
    torch.testing.assert_close(output, F.conv1d(F.pad(input.T, (1, 1))[:, None], torch.ones(1, 1, 3))[:, 0].T)


@pytest.mark.parametrize("fault", CAUGHT_OF_BOXES)
def test_a_broken_kernel_of_boxes_is_caught(faults, fault):
    with pytest.raises(RuntimeError, match=rf"^smoothing, block 0, thread \d+: .*({CAUGHT_OF_BOXES[fault]})"):
        smooth_columns(faults, OF_BOXES[fault])


def test_boxes_that_the_driver_would_refuse_are_refused(faults):
    with pytest.raises(RuntimeError, match=r"^tensor_map: the driver would refuse such boxes"):
        smooth_columns(faults, OF_BOXES["refused by the driver"])


def test_every_fault_has_its_test():
    assert set(FAULTS) == {"none", *CAUGHT}
    assert set(OF_BOXES) == {"no fault of boxes", "refused by the driver", *CAUGHT_OF_BOXES}

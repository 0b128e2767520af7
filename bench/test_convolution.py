"""Per-sample dynamic convolution, depthwise and grouped, and the module that blends its filters from experts."""

from __future__ import annotations

import pytest
import torch

from bench.measure.convolution import measure, measure_module
from bench.peers.convolution import Case

MAIN = {
    "56x56": Case(8, 64, 56),
    "28x28": Case(8, 256, 28),
    "14x14": Case(32, 512, 14),
    "7x7": Case(32, 512, 7),
    "channels_last": Case(8, 256, 28, channels_last=True),
    "5x5": Case(8, 256, 28, kernel=5),
    "4-a-group": Case(8, 256, 28, per_group=4),
    "8-a-group": Case(8, 256, 28, per_group=8),
    "32-a-group": Case(8, 256, 28, per_group=32),
}
RARER = {
    "one-image": Case(1, 256, 28),
    "7x7-filter": Case(8, 256, 28, kernel=7),
    "dilation-1": Case(8, 256, 28, dilations=(1,)),
    "stride-2": Case(8, 256, 28, stride=2),
    "8-a-group-channels_last": Case(8, 256, 28, per_group=8, channels_last=True),
    "bfloat16": Case(8, 256, 28, dtype=torch.bfloat16),
    "float16": Case(8, 256, 28, dtype=torch.float16),
}
MODULES = {"depthwise": Case(8, 256, 28, dilations=(1,)), "8-a-group": Case(8, 256, 28, per_group=8, dilations=(1,))}
EXPERTS = 4
WAYS = pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])


@pytest.mark.parametrize("name", MAIN)
@WAYS
def test_main_forms(name, backward, sized, judged, benchmark, effort):
    group = "forward + backward" if backward else "forward"
    judged(measure(benchmark, group, sized(MAIN[name]), effort, backward=backward))


@pytest.mark.parametrize("name", RARER)
def test_rarer_forms(name, sized, judged, benchmark, effort):
    judged(measure(benchmark, "forward", sized(RARER[name]), effort))


@pytest.mark.parametrize("name", ["28x28", "8-a-group"])
def test_one_thread(name, sized, judged, benchmark, effort, one_thread):
    judged(measure(benchmark, "forward, 1 thread", sized(MAIN[name]), effort))


@pytest.mark.parametrize("name", MODULES)
@WAYS
def test_module_of_blended_experts(name, backward, sized, judged, benchmark, effort):
    judged(measure_module(benchmark, sized(MODULES[name]), effort, EXPERTS, backward=backward))

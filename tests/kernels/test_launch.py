from __future__ import annotations

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hamlet.kernels import launch
from hamlet.kernels.compiled import compile_kernel
from hamlet.ops.triton import convolution


class Hopper:
    """Triton's driver of a GPU that is not there: enough of it to compile for one as a launch does."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def launches(monkeypatch):
    """Launches compile, and are kept, but do not run."""
    found = []

    def compile_only(self):
        values = {**self.arguments, **dict(self.choices[0].tiles)}
        options = {"num_warps": self.choices[0].warps, "num_stages": self.choices[0].stages}
        found.append((self, self.kernel.warmup(**values, **options, grid=(self.programs(values),))))

    before = driver._active
    driver.set_active(Hopper())
    monkeypatch.setattr(launch.Launch, "run", compile_only)
    yield found
    driver._active = before


@pytest.mark.parametrize("per_group", [1, 8], ids=["depthwise", "grouped"])
@pytest.mark.parametrize("run_time", [False, True], ids=["static", "run-time dilation and extents"])
def test_a_launch_compiles_what_the_report_describes(launches, per_group, run_time):
    batch, channels, side = 8, 64, 28
    format = torch.channels_last if run_time else torch.contiguous_format
    input = torch.empty(batch, channels, side, side, dtype=torch.bfloat16).contiguous(memory_format=format)
    weight = torch.empty(batch, channels, per_group, 3, 3, dtype=torch.bfloat16)
    bias = torch.empty(channels, dtype=torch.bfloat16).expand(batch, channels)
    dilation = torch.ones(batch, 4, dtype=torch.int64) if run_time else None
    extent = torch.full((batch, 2), side) if run_time else None
    arguments = (input, weight, bias, dilation, extent, [1, 2, 3, 4], side, 1, channels // per_group, True)
    convolution.backward(convolution.forward(*arguments), *arguments)
    assert len(launches) >= 3
    for made, compiled in launches:
        described = compile_kernel(made.variant("this launch"), 90)
        assert described.asm["ptx"] == compiled.asm["ptx"]
        assert described.metadata.shared == compiled.metadata.shared

"""How the kernels' work is cut up: C++ that runs on the host, looked at by itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WARP, THREADS, LIMIT = 32, 128, 99 * 1024


@given(st.integers(1, 70), st.integers(1, 90), st.integers(1, 8), st.sampled_from([1, 4, 7]))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_tiles_cover_every_position_once(kernels_on_cpu, size, step, most, multiple):
    tiles = kernels_on_cpu.walk(size, step, most * multiple, multiple)
    inside = [position for tile in tiles for position in tile if position < size]
    assert sorted(inside) == list(range(size))
    assert all(len(tile) <= most * multiple and len(tile) % multiple == 0 for tile in tiles)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_plans_fit_the_device(kernels_on_cpu, backward, channels_last):
    shape = kernels_on_cpu.DepthwiseShape()
    shape.backward, shape.channels_last = backward, channels_last
    sizes = itertools.product([2, 4], [1, 3, 5, 7, 9], [1, 2], [1, 7, 56, 1000], [1, 3, 8, 64, 96])
    for shape.itemsize, kernel, stride, width, shape.channels in sizes:
        shape.filter_height = shape.filter_width = kernel
        shape.skip = 1 if backward else stride
        shape.target_height = shape.target_width = width
        shape.source_width = width * shape.skip
        plan = kernels_on_cpu.plan_depthwise(shape, LIMIT, 132)
        if not plan["fits"]:
            # Seven rows and their halo of a contiguous image, which are staged whole.
            assert plan["shared_bytes"] > LIMIT
            assert width == 1000
            assert not channels_last
            continue
        assert plan["threads"] % WARP == 0
        assert plan["lanes"] * plan["vectors"] <= plan["threads"] <= THREADS
        assert plan["chunk"] * plan["chunks"] >= shape.channels > plan["chunk"] * (plan["chunks"] - 1)
        assert plan["segments"] >= 1
        if channels_last:
            assert plan["chunk"] * shape.itemsize % 16 == 0
        else:
            assert plan["pitch"] >= shape.source_width + 2 * (16 // shape.itemsize - 1)


def test_a_large_layer_fills_the_multiprocessors(kernels_on_cpu):
    shape = kernels_on_cpu.DepthwiseShape()
    shape.channels_last, shape.itemsize, shape.filter_height, shape.filter_width = True, 2, 3, 3
    shape.source_width = shape.target_height = shape.target_width = 56
    shape.samples, shape.blocks, shape.channels = 32, 4, 64
    plan = kernels_on_cpu.plan_depthwise(shape, LIMIT, 132)
    # By hand: 8 vectors of 8 channels are the block's 64; 16 lanes make 128 threads; 2 stages of 10 x 18 pixels.
    assert (plan["vectors"], plan["lanes"], plan["rows"], plan["chunk"]) == (8, 16, 8, 64)
    assert plan["shared_bytes"] == 9 * 64 * 4 + 2 * 10 * 18 * 64 * 2
    assert plan["segments"] == -(-8 * 132 // (32 * 4))

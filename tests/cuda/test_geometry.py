"""How the kernels' work is cut up: C++ that runs on the host, looked at by itself."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WARP, THREADS, TILE_PIXELS, LIMIT = 32, 128, 256, 99 * 1024


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
    # By hand: 8 vectors of 8 channels are the block's 64; 16 lanes make 128 threads; 2 stages of 10 x 18 pixels, each
    # with a barrier of 8 bytes.
    assert (plan["vectors"], plan["lanes"], plan["rows"], plan["chunk"]) == (8, 16, 8, 64)
    assert plan["shared_bytes"] == 9 * 64 * 4 + 2 * 10 * 18 * 64 * 2 + 2 * 8
    assert plan["segments"] == -(-8 * 132 // (32 * 4))


def grouped_shape(kernels_on_cpu, **sizes):
    shape = kernels_on_cpu.GroupedShape()
    for name, size in sizes.items():
        setattr(shape, name, size)
    return shape


@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 90), st.sampled_from([1, 3, 7]), st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_tiles_of_pieces_cover_an_image_once(kernels_on_cpu, height, width, step, kernel, skip):
    sizes = {"filter_height": kernel, "filter_width": kernel, "skip": skip}
    shape = grouped_shape(kernels_on_cpu, target_height=height, target_width=width, **sizes)
    capacity = kernels_on_cpu.plan_grouped(shape, False, LIMIT, 132)["capacity"]
    for room in (capacity, kernel * (skip * 7 + kernel)):
        tiles, staged = kernels_on_cpu.grouped_tiles(shape, room, step)
        inside = [(y, x) for tile in tiles for y, x in tile if y < height and x < width]
        assert sorted(inside) == list(itertools.product(range(height), range(width)))
        assert all(0 < len(tile) <= TILE_PIXELS for tile in tiles)
        assert staged <= room


@pytest.mark.parametrize(
    ("side", "step", "tiles"),
    [(56, 1, 14), (28, 1, 4), (14, 1, 1), (7, 1, 1), (28, 4, 4), (14, 6, 3)],
)
def test_small_pieces_share_a_tile(kernels_on_cpu, side, step, tiles):
    shape = grouped_shape(kernels_on_cpu, target_height=side, target_width=side, filter_height=3, filter_width=3)
    capacity = kernels_on_cpu.plan_grouped(shape, False, LIMIT, 132)["capacity"]
    # By hand: 3 x 3 filters and a quarter more than 18 x 18 pixels, or five pieces of 9 x 9, or 16 of 5 x 5.
    assert capacity == 405
    found, staged = kernels_on_cpu.grouped_tiles(shape, capacity, step)
    assert len(found) == tiles
    assert staged <= capacity


@pytest.mark.parametrize("filters", [False, True], ids=["correlation", "filters' gradient"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_of_groups_fit_the_device(kernels_on_cpu, itemsize, filters):
    sizes = itertools.product([1, 3, 7, 9], [1, 2], [1, 4, 8, 20, 32, 64, 256], [1, 8, 16, 24, 40, 256])
    for kernel, skip, inputs, outputs in sizes:
        shape = grouped_shape(
            kernels_on_cpu,
            **{"itemsize": itemsize, "filter_height": kernel, "filter_width": kernel, "skip": skip},
            **{"inputs": inputs, "outputs": outputs, "target_height": 28, "target_width": 28},
        )
        plan = kernels_on_cpu.plan_grouped(shape, filters, LIMIT, 132)
        assert plan["fits"]
        assert plan["shared_bytes"] <= LIMIT
        assert plan["outputs"] in ((16, 32) if filters else (8, 16, 32))
        assert plan["outputs"] * plan["output_chunks"] >= outputs > plan["outputs"] * (plan["output_chunks"] - 1)
        assert plan["units"] * plan["chunks"] * 8 >= inputs > plan["units"] * (plan["chunks"] - 1) * 8
        assert plan["taps"] * plan["tap_ranges"] >= kernel**2 > plan["taps"] * (plan["tap_ranges"] - 1)
        assert plan["capacity"] >= kernel * (skip * 7 + kernel)
        assert 1 <= plan["segments"] <= -(-28 * 28 // TILE_PIXELS)
        if filters:
            # The warps that share the columns have registers for all of them.
            assert plan["across"] in (1, 2, 4)
            assert plan["across"] * (16 if plan["outputs"] == 16 else 10) >= plan["taps"] * plan["units"]


def test_a_grouped_layer_by_hand(kernels_on_cpu):
    shape = grouped_shape(
        kernels_on_cpu,
        **{"itemsize": 2, "filter_height": 3, "filter_width": 3, "inputs": 32, "outputs": 32},
        **{"target_height": 56, "target_width": 56, "samples": 2, "groups": 8},
    )
    plan = kernels_on_cpu.plan_grouped(shape, False, LIMIT, 132)
    # Two units of 405 pixels, rounded to 410, are 13,120 bytes, three would be more than 16 KiB. Both chunks' filters
    # are 18 units of 33 rows of 16 bytes; tables take 2048 + 128 + 405 * 4 + 19 * 4, the warps' sums 4 * 16 * 36 * 4.
    assert (plan["outputs"], plan["units"], plan["chunks"], plan["resident"]) == (32, 2, 2, True)
    tables, bank, stage = 3968, 2 * (18 * 33 * 16 + 96), 13120 + 64
    assert plan["shared_bytes"] == tables + bank + 4 * 16 * 36 * 4 + 2 * stage
    assert plan["segments"] == min(-(-4 * 132 // (2 * 8)), -(-56 * 56 // 256))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_steps_cover_a_box_once_in_the_best_of_their_shapes(kernels_on_cpu, top, left, height, width):
    steps = kernels_on_cpu.steps(top, left, height, width)
    inside = [(y, x) for step in steps for y, x in step if y < top + height and x < left + width]
    assert sorted(inside) == list(itertools.product(range(top, top + height), range(left, left + width)))
    assert all(len(step) == WARP for step in steps)
    assert len(steps) == min(-(-height // (WARP >> shift)) * -(-width // (1 << shift)) for shift in range(6))


@given(st.integers(1, 2000), st.integers(1, 2000), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_centres_are_as_good_as_a_division(kernels_on_cpu, queries, keys, data):
    query = data.draw(st.integers(0, queries - 1))
    quotient = Fraction((2 * query + 1) * keys, 2 * queries)
    exact = quotient - Fraction(1, 2)
    found = Fraction(kernels_on_cpu.centre(query, queries, keys))
    # One rounding of the quotient and one of what is left of it.
    steps = [Fraction(float(np.spacing(np.float32(abs(float(number)))))) for number in (quotient, exact)]
    assert abs(found - exact) <= sum(steps) / 2
    if Fraction(float(np.float32(float(quotient)))) == quotient:
        assert found == exact


@given(st.floats(-60, 60, width=32), st.floats(-60, 60, width=32), st.integers(1, 50))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_span_is_the_whole_positions_between_its_ends(kernels_on_cpu, first, last, size):
    begin, end = kernels_on_cpu.covered(first, last, size)
    assert list(range(begin, end)) == [i for i in range(size) if first <= i <= last]
    assert kernels_on_cpu.covered(math.inf, -math.inf, size) == (size, size)


@pytest.mark.parametrize(("item_bytes", "most"), [(2, 99 * 1024), (4, 163 * 1024)])
def test_attention_fits_the_smaller_devices_in_half_precision(kernels_on_cpu, item_bytes, most):
    needed = [kernels_on_cpu.attention_shared_bytes(item_bytes, channels) for channels in (16, 32, 64, 128)]
    assert needed == sorted(needed)
    assert 0 < needed[0] < needed[-1] <= most
    assert kernels_on_cpu.attention_shared_bytes(item_bytes, 24) == 0
    # By hand, 64 channels in half precision: two tiles of 64 rows and three stages of two times 32 rows, each of 144
    # bytes and the pass by keys with 512 bytes of summaries, after 512 bytes of marks and scratch.
    assert kernels_on_cpu.attention_shared_bytes(2, 64) == 512 + 144 * 2 * 64 + 3 * (144 * 2 * 32 + 512)

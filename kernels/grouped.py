"""Grouped convolution with a filter bank a sample on the matrix units: the output, the input's gradient, the filters'.

A tile of pixels times the filters of one group is a matrix product whose inner dimension runs over the taps and,
fastest, over the group's channels: nothing of it is ever stored, each element is loaded from where its tap reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hamlet.kernels.examples import GROUPED
from hamlet.kernels.launch import Configuration, Launch
from hamlet.kernels.parts import parts_of, sum_of
from hamlet.kernels.problem import Problem, strides
from hamlet.kernels.sample import dilation_of, position, valid_size
from hamlet.kernels.variants import Variant

FORWARD_PROGRAMS, PROGRAMS = 4096, 1024
"""As many as keep a large GPU busy; the pixels of a group are shared out to have them."""


@triton.jit
def tap_of(inner, LANES_IN: tl.constexpr, WIDTH: tl.constexpr):
    """Row and column of the kernel, and channel of the group, at a place of the inner dimension."""
    tap = inner // LANES_IN
    return tap // WIDTH, tap % WIDTH, inner % LANES_IN


@triton.jit
def load_taps(source, y, x, dy, dx, is_tap, limits, source_y, source_x, SPREAD: tl.constexpr):
    """What taps that reach (dy, dx), along the columns, read of ``source`` for the pixels (y, x), along the rows."""
    _, is_row = position(y[:, None] + dy[None, :], limits[0], SPREAD)
    _, is_column = position(x[:, None] + dx[None, :], limits[1], SPREAD)
    pixel = y.to(tl.int64) * source_y + x.to(tl.int64) * source_x
    tap = dy.to(tl.int64) * source_y + dx.to(tl.int64) * source_x
    # Where the spread grid holds a pixel at all, its rows and columns are both whole multiples of the stride.
    offset = (pixel[:, None] + tap[None, :]) // SPREAD
    return tl.load(source[None, :] + offset, is_row & is_column & is_tap[None, :], 0)


@triton.jit(do_not_specialize=["source_height", "source_width", "target_height", "target_width", "greatest"])
def grouped(
    source, filters, bias, target, dilation, extent,
    source_height, source_width, target_height, target_width,
    source_b, source_c, source_y, source_x,
    filters_b, filters_out, filters_in, filters_i, filters_j,
    bias_b, bias_c,
    target_b, target_c, target_y, target_x,
    groups, blocks, greatest, segments,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, RESIDUAL: tl.constexpr,
    GRADIENT: tl.constexpr, PRECISION: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, LANES_IN: tl.constexpr, LANES_OUT: tl.constexpr,
):  # fmt: skip
    """target = source correlated with ``filters`` (HEIGHT x WIDTH), from INPUTS to OUTPUTS channels a group.

    With ``GRADIENT`` the source is the output's gradient, spread by the stride, and the filters are turned round;
    INPUTS then counts the convolution's output channels, and OUTPUTS its input channels. ``segments`` programs share
    the pixels of a group.
    """
    SPREAD: tl.constexpr = STRIDE if GRADIENT else 1
    SKIP: tl.constexpr = 1 if GRADIENT else STRIDE
    index = tl.program_id(0)
    group, index = index % groups, index // groups
    row_tiles, column_tiles = tl.cdiv(target_height, ROWS), tl.cdiv(target_width, COLUMNS)
    output_tiles = tl.cdiv(OUTPUTS, LANES_OUT)
    tile, index = index % output_tiles, index // output_tiles
    n = tile * LANES_OUT + tl.arange(0, LANES_OUT)
    segment, sample = index % segments, (index // segments).to(tl.int64)
    block = group // (groups // blocks)
    step = dilation_of(dilation, sample, block, blocks, greatest, STEPS)
    limits = valid_size(extent, sample, source_height, source_width, SPREAD)
    target_rows, target_columns = valid_size(extent, sample, target_height, target_width, SKIP)
    source += sample * source_b + (group * INPUTS).to(tl.int64) * source_c
    if GRADIENT:
        filters += sample * filters_b + (group * INPUTS).to(tl.int64) * filters_in
        filters += (HEIGHT - 1) * filters_i + (WIDTH - 1) * filters_j
        filters_i, filters_j = -filters_i, -filters_j
    else:
        filters += sample * filters_b + (group * OUTPUTS).to(tl.int64) * filters_out
    filters += (n.to(tl.int64) * filters_out)[None, :]
    channel = (group * OUTPUTS + n).to(tl.int64)
    is_channel = (n < OUTPUTS)[None, :]
    target += sample * target_b + (channel * target_c)[None, :]
    start = tl.zeros((ROWS * COLUMNS, LANES_OUT), tl.float32)
    if bias is not None:
        start += tl.load(bias + sample * bias_b + channel * bias_c, n < OUTPUTS, 0).to(tl.float32)[None, :]
    pixel = tl.arange(0, ROWS * COLUMNS)

    for tile in range(segment, row_tiles * column_tiles, segments):
        y = tile // column_tiles * ROWS + pixel // COLUMNS
        x = tile % column_tiles * COLUMNS + pixel % COLUMNS
        sums = start
        for inner in range(0, HEIGHT * WIDTH * LANES_IN, INNER):
            i, j, c = tap_of(inner + tl.arange(0, INNER), LANES_IN, WIDTH)
            is_tap = (i < HEIGHT) & (c < INPUTS)
            dy, dx = (i - HEIGHT // 2) * step, (j - WIDTH // 2) * step
            reads = source + c.to(tl.int64) * source_c
            pixels = load_taps(reads, y * SKIP, x * SKIP, dy, dx, is_tap, limits, source_y, source_x, SPREAD)
            taps = (i * filters_i + j * filters_j + c.to(tl.int64) * filters_in)[:, None]
            taps = tl.load(filters + taps, is_tap[:, None] & is_channel, 0)
            sums = tl.dot(pixels, taps, sums, input_precision=PRECISION)
        is_valid = ((y < target_rows) & (x < target_columns))[:, None]
        if RESIDUAL:
            pixels = source + (y.to(tl.int64) * source_y + x.to(tl.int64) * source_x)[:, None]
            added = tl.load(pixels + (n.to(tl.int64) * source_c)[None, :], is_valid & is_channel, 0)
            sums += added.to(tl.float32)
        is_stored = ((y < target_height) & (x < target_width))[:, None] & is_channel
        result = tl.where(is_valid, sums, 0).to(target.dtype.element_ty)
        tl.store(target + (y.to(tl.int64) * target_y + x.to(tl.int64) * target_x)[:, None], result, is_stored)


@triton.jit(do_not_specialize=["source_height", "source_width", "target_height", "target_width", "greatest", "samples"])
def grouped_weight(
    source, grad, filters, bias, dilation, extent,
    source_height, source_width, target_height, target_width,
    source_b, source_c, source_y, source_x,
    grad_b, grad_c, grad_y, grad_x,
    samples, groups, blocks, greatest, segments,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, PRECISION: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, LANES_IN: tl.constexpr, LANES_OUT: tl.constexpr,
):  # fmt: skip
    """Parts of the gradients of filters (segments, B, Cout, INPUTS, HEIGHT, WIDTH) and bias (segments, B, Cout)."""
    inner_tiles = tl.cdiv(HEIGHT * WIDTH * LANES_IN, INNER)
    index = tl.program_id(0)
    group, index = index % groups, index // groups
    row_tiles, column_tiles = tl.cdiv(target_height, ROWS), tl.cdiv(target_width, COLUMNS)
    output_tiles = tl.cdiv(OUTPUTS, LANES_OUT)
    tile, index = index % output_tiles, index // output_tiles
    n = tile * LANES_OUT + tl.arange(0, LANES_OUT)
    inner, index = index % inner_tiles, index // inner_tiles
    i, j, c = tap_of(inner * INNER + tl.arange(0, INNER), LANES_IN, WIDTH)
    segment, sample = index % segments, (index // segments).to(tl.int64)
    block = group // (groups // blocks)
    step = dilation_of(dilation, sample, block, blocks, greatest, STEPS)
    limits = valid_size(extent, sample, source_height, source_width, 1)
    grad_rows, grad_columns = valid_size(extent, sample, target_height, target_width, STRIDE)
    source += sample * source_b + (group * INPUTS).to(tl.int64) * source_c
    grad += sample * grad_b + ((group * OUTPUTS + n).to(tl.int64) * grad_c)[None, :]
    is_channel = n < OUTPUTS
    is_tap = (i < HEIGHT) & (c < INPUTS)
    dy, dx = (i - HEIGHT // 2) * step, (j - WIDTH // 2) * step
    source += c.to(tl.int64) * source_c
    pixel = tl.arange(0, ROWS * COLUMNS)

    sums = tl.zeros((INNER, LANES_OUT), tl.float32)
    bias_sums = tl.zeros((ROWS * COLUMNS, LANES_OUT), tl.float32)
    for tile in range(segment, row_tiles * column_tiles, segments):
        y = tile // column_tiles * ROWS + pixel // COLUMNS
        x = tile % column_tiles * COLUMNS + pixel % COLUMNS
        is_valid = ((y < grad_rows) & (x < grad_columns))[:, None] & is_channel[None, :]
        grads = tl.load(grad + (y.to(tl.int64) * grad_y + x.to(tl.int64) * grad_x)[:, None], is_valid, 0)
        pixels = load_taps(source, y * STRIDE, x * STRIDE, dy, dx, is_tap, limits, source_y, source_x, 1)
        sums = tl.dot(tl.trans(pixels), grads, sums, input_precision=PRECISION)
        if bias is not None:
            bias_sums += grads.to(tl.float32)

    channel = (segment.to(tl.int64) * samples + sample) * (groups * OUTPUTS) + group * OUTPUTS + n
    taps = (c * HEIGHT + i) * WIDTH + j
    found = filters + (channel * (INPUTS * HEIGHT * WIDTH))[None, :] + taps[:, None]
    tl.store(found, sums.to(filters.dtype.element_ty), is_tap[:, None] & is_channel[None, :])
    if bias is not None:
        total = tl.sum(bias_sums, 0).to(bias.dtype.element_ty)
        tl.store(bias + channel, total, is_channel & (inner == 0))


def correlate(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    problem: Problem,
    *,
    residual: bool,
    gradient: bool,
) -> Launch:
    """The launch that fills ``target`` from the input or, with ``gradient``, from the output's gradient."""
    samples, channels, height, width = target.shape
    inputs, outputs = source.shape[1] // problem.groups, channels // problem.groups
    choices = configurations(width, inputs, outputs, 128, (32, 64))

    def tiles(values: Mapping[str, Any]) -> int:
        return samples * problem.groups * triton.cdiv(outputs, values["LANES_OUT"])

    chosen = dict(choices[0].tiles)
    pixels = triton.cdiv(height, chosen["ROWS"]) * triton.cdiv(width, chosen["COLUMNS"])
    segments = min(triton.cdiv(FORWARD_PROGRAMS, tiles(chosen)), pixels)
    arguments = {
        **problem.arguments(source, target, weight),
        **{"source": source, "filters": weight, "bias": bias, "target": target},
        **strides("source", source, "bcyx"),
        **strides("filters", weight, ("b", "in", "out", "i", "j") if gradient else ("b", "out", "in", "i", "j")),
        **strides("bias", bias, "bc"),
        **strides("target", target, "bcyx"),
        **{"groups": problem.groups, "INPUTS": inputs, "OUTPUTS": outputs, "segments": segments},
        **{"RESIDUAL": residual, "GRADIENT": gradient, "PRECISION": problem.precision},
    }
    return Launch(grouped, lambda values: segments * tiles(values), arguments, choices, KEY)


def reduce(input: Tensor, grad: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> list[Launch]:
    """The launches that fill ``weight`` and ``bias``, both contiguous, with the gradients of filters and bias."""
    samples, channels, height, width = grad.shape
    inputs, outputs, taps = weight.shape[2], channels // problem.groups, weight.shape[3] * weight.shape[4]
    choices = configurations(width, inputs, outputs, 64, (64, 128))

    def tiles(values: Mapping[str, Any]) -> int:
        inner = triton.cdiv(taps * values["LANES_IN"], values["INNER"])
        return samples * problem.groups * inner * triton.cdiv(outputs, values["LANES_OUT"])

    chosen = dict(choices[0].tiles)
    pixels = triton.cdiv(height, chosen["ROWS"]) * triton.cdiv(width, chosen["COLUMNS"])
    segments = max(1, min(triton.cdiv(PROGRAMS, tiles(chosen)), pixels // 2))
    weight_parts = parts_of(weight, segments)
    bias_parts = None if bias is None else parts_of(bias, segments)
    arguments = {
        **problem.arguments(input, grad, weight),
        **{"source": input, "grad": grad, "filters": weight_parts, "bias": bias_parts},
        **strides("source", input, "bcyx"),
        **strides("grad", grad, "bcyx"),
        **{"samples": samples, "groups": problem.groups, "INPUTS": inputs, "OUTPUTS": outputs},
        **{"segments": segments, "PRECISION": problem.precision},
    }
    return [
        Launch(grouped_weight, lambda values: segments * tiles(values), arguments, choices, KEY),
        *sum_of(weight_parts, weight),
        *([] if bias is None or bias_parts is None else sum_of(bias_parts, bias)),
    ]


KEY = ("target_width", "INPUTS", "OUTPUTS", "HEIGHT", "WIDTH", "STRIDE", "source_x")


def configurations(
    width: int, inputs: int, outputs: int, pixels: int, inner: tuple[int, ...]
) -> tuple[Configuration, ...]:
    """Tiles of so many ``pixels`` in rows, and of a group's channels as far as the matrix units take them at once."""
    columns = 16 if width <= 16 else 32
    return tuple(
        Configuration(
            (
                ("ROWS", pixels // columns),
                ("COLUMNS", columns),
                ("INNER", size),
                ("LANES_IN", triton.next_power_of_2(max(inputs, 1))),
                ("LANES_OUT", min(max(triton.next_power_of_2(outputs), 8), 64)),
            )
        )
        for size in inner
    )


def variants() -> Iterator[Variant]:
    for example in GROUPED:
        given, made = example.images(), example.images(example.stride)
        weight, bias, problem = example.weight(), example.bias(), example.problem()
        forward = correlate(given, weight, bias, made, problem, residual=example.stride == 1, gradient=False)
        matrix = example.precision == "tf32"
        yield forward.variant(f"grouped {example}", matrix=matrix)
        if example.stride == 2:  # with stride 1 it is the forward's code
            backward = correlate(made, weight, None, given, problem, residual=False, gradient=True)
            yield backward.variant(f"grouped input gradient {example}", matrix=matrix)
        first, *_ = reduce(given, made, weight, bias, problem)
        yield first.variant(f"grouped filters' gradient {example}", matrix=matrix)

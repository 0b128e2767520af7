"""Depthwise convolution with a filter bank a sample, and the gradient of its input: one pass over the data.

A program owns a tile of columns and channels and walks down rows that are one dilation apart, because neighbours on
that walk read the same rows of the source: a row is loaded once for all the taps above and below that meet in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hamlet.kernels.examples import DEPTHWISE
from hamlet.kernels.launch import Configuration, Launch
from hamlet.kernels.problem import Problem, is_channels_last, strides
from hamlet.kernels.sample import dilation_of, position, valid_size
from hamlet.kernels.variants import Variant

THREADS = 128
PROGRAMS = 2048
"""As many as keep a large GPU busy to the end; a tile's rows are shared out to have them."""


@triton.jit
def add_column(
    sums, source, channel, filters, j, x, top, step, is_channel, limits, source_y, source_x,
    TAP_I: tl.constexpr, TAP_J: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    SKIP: tl.constexpr, SPREAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add to the ``sums`` of ROWS rows the products of column ``j`` of the filters, which reach down from ``top``."""
    column, is_column = position(x * SKIP + (j - WIDTH // 2) * step, limits[1], SPREAD)
    pixel = (column.to(tl.int64) * source_x)[:, None] + channel
    is_pixel = is_column[:, None] & is_channel[None, :]
    taps = ()
    for i in tl.static_range(HEIGHT):
        tap = tl.load(filters + i * TAP_I + j * TAP_J, is_channel, 0)
        taps = taps + (tap.to(tl.float32)[None, :],)
    for r in tl.static_range(ROWS + HEIGHT - 1):
        row, is_row = position(top + r * step, limits[0], SPREAD)
        line = source + row.to(tl.int64) * source_y
        value = tl.load(line + pixel, is_pixel & is_row, 0).to(tl.float32)
        added = ()
        for m in tl.static_range(ROWS):
            added = added + (sums[m] + taps[r - m] * value if r >= m and r - m < HEIGHT else sums[m],)
        sums = added
    return sums


@triton.jit(do_not_specialize=["source_height", "source_width", "target_height", "target_width", "greatest"])
def depthwise(
    source, filters, bias, target, dilation, extent,
    source_height, source_width, target_height, target_width,
    source_b, source_c, source_y, source_x,
    filters_b, filters_c, filters_i: tl.constexpr, filters_j: tl.constexpr,
    bias_b, bias_c,
    target_b, target_c, target_y, target_x,
    blocks, channels, greatest, segments,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, RESIDUAL: tl.constexpr,
    GRADIENT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """target = source correlated with ``filters`` (HEIGHT x WIDTH), ``channels`` of them in each of ``blocks`` blocks.

    With ``GRADIENT`` the filters are turned round and the source, the output's gradient, is spread by the stride.
    ``segments`` programs share the walks of a tile.
    """
    SPREAD: tl.constexpr = STRIDE if GRADIENT else 1
    SKIP: tl.constexpr = 1 if GRADIENT else STRIDE
    index = tl.program_id(0)
    segment, index = index % segments, index // segments
    column_tiles, channel_tiles = tl.cdiv(target_width, COLUMNS), tl.cdiv(channels, CHANNELS)
    tile, index = index % column_tiles, index // column_tiles
    x = tile * COLUMNS + tl.arange(0, COLUMNS)
    tile, index = index % channel_tiles, index // channel_tiles
    block, sample = index % blocks, (index // blocks).to(tl.int64)
    c = tile * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = c < channels
    c = (block * channels + c).to(tl.int64)
    step = dilation_of(dilation, sample, block, blocks, greatest, STEPS)
    limits = valid_size(extent, sample, source_height, source_width, SPREAD)
    target_rows, target_columns = valid_size(extent, sample, target_height, target_width, SKIP)
    source += sample * source_b
    channel = (c * source_c)[None, :]
    target += sample * target_b
    target_pixel = (c * target_c)[None, :] + (x.to(tl.int64) * target_x)[:, None]
    filters += sample * filters_b + c * filters_c
    # Constants, because a thread reads its channels' filters one element at a time.
    TAP_I: tl.constexpr = -filters_i if GRADIENT else filters_i
    TAP_J: tl.constexpr = -filters_j if GRADIENT else filters_j
    if GRADIENT:
        filters += (HEIGHT - 1) * filters_i + (WIDTH - 1) * filters_j
    start = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    if bias is not None:
        start += tl.load(bias + sample * bias_b + c * bias_c, is_channel, 0).to(tl.float32)[None, :]

    walk = step if SKIP == 1 else 1
    walks = walk * tl.cdiv(tl.cdiv(target_height, walk), ROWS)
    for walked in range(segment, walks, segments):
        first = walked % walk + walked // walk * (walk * ROWS)
        top = first * SKIP - HEIGHT // 2 * step
        sums = (start,) * ROWS
        # Three columns are worth unrolling: their loads then overlap. More would not fit in the registers.
        if WIDTH <= 3:
            for j in tl.static_range(WIDTH):
                sums = add_column(
                    sums, source, channel, filters, j, x, top, step, is_channel, limits, source_y, source_x,
                    TAP_I, TAP_J, HEIGHT, WIDTH, SKIP, SPREAD, ROWS,
                )  # fmt: skip
        else:
            for j in range(WIDTH):
                sums = add_column(
                    sums, source, channel, filters, j, x, top, step, is_channel, limits, source_y, source_x,
                    TAP_I, TAP_J, HEIGHT, WIDTH, SKIP, SPREAD, ROWS,
                )  # fmt: skip
        for m in tl.static_range(ROWS):
            y = first + m * walk
            is_valid = ((y < target_rows) & (x < target_columns))[:, None]
            result = sums[m]
            if RESIDUAL:
                line = source + y.to(tl.int64) * source_y
                pixel = (x.to(tl.int64) * source_x)[:, None] + channel
                result += tl.load(line + pixel, is_valid & is_channel[None, :], 0).to(tl.float32)
            is_stored = ((y < target_height) & (x < target_width))[:, None] & is_channel[None, :]
            result = tl.where(is_valid, result, 0).to(target.dtype.element_ty)
            line = target + y.to(tl.int64) * target_y
            tl.store(line + target_pixel, result, is_stored)


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
    samples, _, height, width = target.shape
    blocks = len(problem.steps)
    channels = problem.groups // blocks
    walks = gradient or problem.stride == 1
    choices = configurations(source.element_size(), is_channels_last(source), weight.shape[3], width, channels, walks)

    def tiles(values: Mapping[str, Any]) -> int:
        return samples * blocks * triton.cdiv(width, values["COLUMNS"]) * triton.cdiv(channels, values["CHANNELS"])

    chosen = dict(choices[0].tiles)
    segments = min(triton.cdiv(PROGRAMS, tiles(chosen)), triton.cdiv(height, chosen["ROWS"]))
    arguments = {
        **problem.arguments(source, target, weight),
        **{"source": source, "filters": weight[:, :, 0], "bias": bias, "target": target},
        **strides("source", source, "bcyx"),
        **strides("filters", weight[:, :, 0], "bcij"),
        **strides("bias", bias, "bc"),
        **strides("target", target, "bcyx"),
        **{"channels": channels, "segments": segments, "RESIDUAL": residual, "GRADIENT": gradient},
    }
    return Launch(
        depthwise,
        lambda values: values["segments"] * tiles(values),
        arguments,
        choices,
        ("target_width", "channels", "HEIGHT", "STRIDE", "source_x"),
    )


def configurations(
    itemsize: int, channels_last: bool, kernel: int, width: int, channels: int, walks: bool
) -> tuple[Configuration, ...]:
    """Tiles as large as the registers hold the sums of; ``walks``: rows share loads, unless the stride skips them.

    Seven rows, because the sides of feature maps are mostly multiples of seven.
    """
    if channels_last:
        vector = 16 // itemsize
        each = min(vector, 8 if kernel <= 3 else 4 if kernel <= 7 else 2)
        fast = min(8 * vector, triton.next_power_of_2(channels))
    else:
        each = 2
        fast = 16 if width <= 16 else 32
    rows = 1 if not walks else 4 if each > 4 or kernel > 5 else 7

    def configuration(rows: int, each: int) -> Configuration:
        slow = THREADS * each // fast
        columns, lanes = (slow, fast) if channels_last else (fast, min(slow, triton.next_power_of_2(channels)))
        return Configuration((("ROWS", rows), ("COLUMNS", columns), ("CHANNELS", lanes)), THREADS // 32)

    tried = [(rows, each), (max(rows // 2, 1), each), (rows, each // 2), (rows, each * 2)]
    return tuple(dict.fromkeys(configuration(*sizes) for sizes in tried))


def variants() -> Iterator[Variant]:
    for example in DEPTHWISE:
        given, made = example.images(), example.images(example.stride)
        weight, bias, problem = example.weight(), example.bias(), example.problem()
        forward = correlate(given, weight, bias, made, problem, residual=example.stride == 1, gradient=False)
        yield forward.variant(f"depthwise {example}")
        if example.stride == 2:  # with stride 1 it is the forward's code
            backward = correlate(made, weight, None, given, problem, residual=False, gradient=True)
            yield backward.variant(f"depthwise input gradient {example}")

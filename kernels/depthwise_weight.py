"""The gradients of a depthwise convolution's filters and bias, the first of two stages: each program sums its share.

As in the forward, a program walks down rows that are one dilation apart and uses every row it loads for all the taps
that meet in it. The products stay in the lanes until the program's last pixel, and are summed across them only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hamlet.kernels.examples import DEPTHWISE
from hamlet.kernels.launch import Configuration, Launch
from hamlet.kernels.parts import parts_of, sum_of
from hamlet.kernels.problem import Problem, is_channels_last, strides
from hamlet.kernels.sample import dilation_of, position, valid_size
from hamlet.kernels.variants import Variant

THREADS = 128
SUMS = 72
"""Of the filters' gradients, for all of a thread's channels and columns: more do not fit in its registers."""
PROGRAMS = 1024


@triton.jit
def add_products(
    sums, grads, source, pixel, is_pixel, top, step, rows, source_y, j: tl.constexpr,
    HEIGHT: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add what ROWS rows of ``grads`` give to the HEIGHT ``sums`` of column ``j`` of the filters."""
    for r in tl.static_range(ROWS + HEIGHT - 1):
        row, is_row = position(top + r * step, rows, 1)
        line = source + row.to(tl.int64) * source_y
        value = tl.load(line + pixel, is_pixel & is_row, 0).to(tl.float32)
        added = ()
        for n in tl.static_range(GROUP * HEIGHT):
            added = added + (
                sums[n] + grads[r - n % HEIGHT] * value
                if n // HEIGHT == j and r >= n % HEIGHT and r - n % HEIGHT < ROWS
                else sums[n],
            )
        sums = added
    return sums


@triton.jit(do_not_specialize=["source_height", "source_width", "target_height", "target_width", "greatest", "samples"])
def depthwise_weight(
    source, grad, filters, bias, dilation, extent,
    source_height, source_width, target_height, target_width,
    source_b, source_c, source_y, source_x,
    grad_b, grad_c, grad_y, grad_x,
    samples, blocks, channels, greatest, segments,
    STEPS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Parts of the gradients of filters (segments, B, C, HEIGHT, WIDTH) and, where there is one, bias (segments, B, C).

    Programs are for GROUP columns of the filters, as many as the registers hold the sums of.
    """
    index = tl.program_id(0)
    segment, index = index % segments, index // segments
    group, index = index % tl.cdiv(WIDTH, GROUP), index // tl.cdiv(WIDTH, GROUP)
    column_tiles, channel_tiles = tl.cdiv(target_width, COLUMNS), tl.cdiv(channels, CHANNELS)
    tile, index = index % channel_tiles, index // channel_tiles
    block, sample = index % blocks, (index // blocks).to(tl.int64)
    c = tile * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = c < channels
    c = (block * channels + c).to(tl.int64)
    step = dilation_of(dilation, sample, block, blocks, greatest, STEPS)
    source_rows, source_columns = valid_size(extent, sample, source_height, source_width, 1)
    grad_rows, grad_columns = valid_size(extent, sample, target_height, target_width, STRIDE)
    source += sample * source_b
    grad += sample * grad_b

    zeros = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    sums = (zeros,) * (GROUP * HEIGHT)
    bias_sum = zeros
    walk = step if STRIDE == 1 else 1
    walks = walk * tl.cdiv(tl.cdiv(target_height, walk), ROWS)
    for item in range(segment, walks * column_tiles, segments):
        walked, x = item // column_tiles, item % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
        first = walked % walk + walked // walk * (walk * ROWS)
        pixel = (x.to(tl.int64) * grad_x)[:, None] + (c * grad_c)[None, :]
        grads = ()
        for m in tl.static_range(ROWS):
            y = first + m * walk
            line = grad + y.to(tl.int64) * grad_y
            is_valid = ((y < grad_rows) & (x < grad_columns))[:, None] & is_channel[None, :]
            value = tl.load(line + pixel, is_valid, 0).to(tl.float32)
            grads = grads + (value,)
            bias_sum += value
        top = first * STRIDE - HEIGHT // 2 * step
        for j in tl.static_range(GROUP):
            shift = group * GROUP + j - WIDTH // 2
            column, is_column = position(x * STRIDE + shift * step, source_columns, 1)
            is_pixel = is_column[:, None] & is_channel[None, :]
            pixel = (column.to(tl.int64) * source_x)[:, None] + (c * source_c)[None, :]
            sums = add_products(
                sums, grads, source, pixel, is_pixel, top, step, source_rows, source_y, j, HEIGHT, ROWS, GROUP
            )
    part = (segment.to(tl.int64) * samples + sample) * (blocks * channels) + c
    for n in tl.static_range(GROUP * HEIGHT):
        i, j = n % HEIGHT, group * GROUP + n // HEIGHT
        total = tl.sum(sums[n], 0).to(filters.dtype.element_ty)
        tl.store(filters + part * (HEIGHT * WIDTH) + i * WIDTH + j, total, is_channel & (j < WIDTH))
    if bias is not None:
        total = tl.sum(bias_sum, 0).to(bias.dtype.element_ty)
        tl.store(bias + part, total, is_channel & (group == 0))


def reduce(input: Tensor, grad: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> list[Launch]:
    """The launches that fill ``weight`` and ``bias``, both contiguous, with the gradients of filters and bias."""
    samples, _, height, width = grad.shape
    blocks, taps = len(problem.steps), weight.shape[3:]
    channels = problem.groups // blocks
    choices = configurations(
        input.element_size(), is_channels_last(input), taps[0], taps[1], width, channels, problem.stride == 1
    )

    def tiles(values: Mapping[str, Any]) -> int:
        shared = triton.cdiv(channels, values["CHANNELS"]) * triton.cdiv(taps[1], values["GROUP"])
        return samples * blocks * shared

    chosen = dict(choices[0].tiles)
    walks = triton.cdiv(height, chosen["ROWS"]) * triton.cdiv(width, chosen["COLUMNS"])
    segments = max(1, min(triton.cdiv(PROGRAMS, tiles(chosen)), walks // 2))
    weight_parts = parts_of(weight, segments)
    bias_parts = None if bias is None else parts_of(bias, segments)
    arguments = {
        **problem.arguments(input, grad, weight),
        **{"source": input, "grad": grad, "filters": weight_parts, "bias": bias_parts},
        **strides("source", input, "bcyx"),
        **strides("grad", grad, "bcyx"),
        **{"samples": samples, "channels": channels, "segments": segments},
    }
    key = ("target_width", "channels", "HEIGHT", "WIDTH", "STRIDE", "source_x")
    return [
        Launch(depthwise_weight, lambda values: segments * tiles(values), arguments, choices, key),
        *sum_of(weight_parts, weight),
        *([] if bias is None or bias_parts is None else sum_of(bias_parts, bias)),
    ]


def configurations(
    itemsize: int, channels_last: bool, height: int, kernel_width: int, width: int, channels: int, walks: bool
) -> tuple[Configuration, ...]:
    """Tiles of whole vectors of channels, or runs of columns; the columns of a filter whose sums fit beside them."""
    if channels_last:
        each = 16 // itemsize
        fast = min(8 * each, triton.next_power_of_2(channels))
    else:
        each = 2
        fast = 16 if width <= 16 else 32
    slow = THREADS * each // fast
    columns, lanes = (slow, fast) if channels_last else (fast, min(slow, triton.next_power_of_2(channels)))
    # As few groups of columns as their sums allow, and then all of one size.
    group = triton.cdiv(kernel_width, triton.cdiv(kernel_width, max(1, SUMS // (each * height))))
    return tuple(
        Configuration((("ROWS", rows), ("COLUMNS", columns), ("CHANNELS", lanes), ("GROUP", group)), THREADS // 32)
        for rows in ((4, 2) if walks else (1,))
    )


def variants() -> Iterator[Variant]:
    for example in DEPTHWISE:
        grad, problem = example.images(example.stride), example.problem()
        first, *_ = reduce(example.images(), grad, example.weight(), example.bias(), problem)
        yield first.variant(f"depthwise filters' gradient {example}")

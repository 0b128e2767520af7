"""Which tile shapes the attention kernels take, by the size of the channels and the ratio of the grids.

Small tiles waste less: of the pairs that a tile of T x T queries multiplies, those of one query's window are about
``(2 r / (2 r + (T - 1) ratio)) ** 2``, the ratio being key pixels a query pixel. Large tiles read each key for more
queries and fill the matrix units. Shapes are as large as the registers hold, and none has been timed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FINE = 1.5
"""The ratio from which on the other grid counts as fine: a tile of 8 x 8 would meet four times its window and more."""


@dataclass(frozen=True)
class Configuration:
    """Shape of the tile that a program owns, pixels of the other grid that it takes a step, and how a program runs."""

    tile_y: int
    tile_x: int
    step: int
    warps: int
    stages: int = 2


SQUARE, LONG, SMALL = Configuration(8, 8, 32, 4), Configuration(4, 8, 16, 4), Configuration(4, 4, 16, 4)
WIDE, WIDEST = Configuration(4, 8, 16, 8), Configuration(4, 4, 16, 8)

HALF = {
    "forward": {32: SQUARE, 64: Configuration(8, 8, 16, 4), 128: LONG, 256: WIDE},
    "queries": {32: replace(SQUARE, stages=3), 64: LONG, 128: WIDE, 256: Configuration(4, 4, 32, 8)},
    "keys": {32: SQUARE, 64: LONG, 128: WIDE, 256: WIDEST},
}
"""For numbers of 16 bits: by kernel, and by the most channels."""

SINGLE = {
    "forward": {32: SQUARE, 64: LONG, 128: SMALL, 256: WIDEST},
    "queries": {32: LONG, 64: SMALL, 128: WIDE, 256: WIDEST},
    "keys": {32: LONG, 64: SMALL, 256: replace(WIDEST, stages=1)},
}
"""For numbers of 32 bits, which take twice the room and, unless as tf32, no matrix units."""


def configuration(kernel: str, itemsize: int, channels: int, ratio: float) -> Configuration:
    """The configuration of ``kernel`` ("forward", "queries" or "keys").

    Args:
        itemsize: bytes a number.
        channels: of a query or a value, whichever has more.
        ratio: pixels of the other grid along an axis for one of the tile's own.
    """
    shapes = (SINGLE if itemsize == 4 else HALF)[kernel]
    chosen = shapes[min(size for size in shapes if size >= block(channels))]
    # Half the tile; the same step, which leaves every thread 16 bytes to copy.
    return replace(chosen, tile_y=4) if ratio > FINE and chosen.tile_y > 4 else chosen


def block(channels: int) -> int:
    """Channels padded to what the matrix units take."""
    return max(16, 1 << (channels - 1).bit_length()) if channels else 16

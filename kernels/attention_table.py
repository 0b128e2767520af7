"""Which tile shapes the attention kernels take: a table by the channels' size and the ratio of the grids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Configuration:
    """Shape of the tile that a program owns, rows of the other side that it takes a step, and launch parameters."""

    tile_y: int
    tile_x: int
    step: int
    warps: int
    stages: int


def block(channels: int) -> int:
    """Channels padded to what the matrix units take."""
    return max(16, 1 << (channels - 1).bit_length()) if channels else 16


def configuration(kernel: str, itemsize: int, channels: int, ratio: float) -> Configuration:
    return Configuration(8, 8, 32, 4, 2)

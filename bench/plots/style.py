"""What all pictures share."""

from __future__ import annotations

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, NullFormatter

OURS, THEIRS, LOST, LIMIT = "#1f5fa8", "#8a8a8a", "#c0392b", "#444444"
COLOURS = (
    "#e08214",
    "#35978f",
    "#8073ac",
    "#b2182b",
    "#7f7f7f",
    "#4d9221",
    "#c51b7d",
    "#542788",
    "#000000",
    "#b8860b",
    "#00bcd4",
    "#8c564b",
)


def plain_numbers(axis: Axis) -> None:
    """Ticks as they are said: 0.5 and 200, no powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

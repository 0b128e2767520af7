"""A run as pictures: roofline, adaptive curve, speed-ups, growth."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.figure import Figure

from bench.comparison import Comparison
from bench.plots.curves import adaptive, grows, growth
from bench.plots.roofline import roofline
from bench.plots.speedups import speedups
from bench.plots.style import LIMIT
from bench.results import Results
from hamlet.files import replacing

DPI = 120


def draw(results: Results, folder: Path) -> list[str]:
    """Write every picture that the run has data for, as PNG; returns their names, without the ending."""
    pictures: dict[str, Callable[[list[Comparison]], Figure | None]] = {
        "speedups-attention": lambda cases: speedups(_of(cases, "attention", "pyramid")),
        "speedups-convolution": lambda cases: speedups(_of(cases, "convolution", "module")),
        "speedups-other": lambda cases: speedups(_of(cases, "extraction", "index", "model")),
        "roofline": roofline,
        "adaptive": adaptive,
        "growth": lambda cases: growth(cases, "forward"),
        "growth-backward": lambda cases: growth(cases, "forward + backward"),
    }
    drawn = []
    for name, picture in pictures.items():
        figure = picture(results.comparisons)
        if figure is None:
            continue
        figure.suptitle(results.line, fontsize=6, color=LIMIT)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
        with replacing(folder / f"{name}.png") as file:
            file.write(buffer.getvalue())
        drawn.append(name)
    return drawn


def _of(comparisons: Iterable[Comparison], *groups: str) -> list[Comparison]:
    return [found for found in comparisons if found.group.startswith(groups) and not grows(found)]

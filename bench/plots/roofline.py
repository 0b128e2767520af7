"""The roofline."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.comparison import COPY, PEAK, Comparison
from bench.plots.style import COLOURS, LIMIT, OURS, THEIRS, plain_numbers


def roofline(comparisons: list[Comparison]) -> Figure | None:
    """Each operator's case between the machine's peak and the speed of a copy, both as the same run measured them."""
    shown = [
        found
        for found in comparisons
        if found.operations and found.bytes and found.limit and found.hamlet and "1 thread" not in found.group
    ]
    if not shown:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    intensity = {found.name: found.operations / found.bytes for found in shown}
    low, high = min(intensity.values()) / 2, max(intensity.values()) * 2
    _roofs(axes, shown, low, high)
    families = {
        "attention forward": "o", "attention forward + backward": "s", "pyramid": "D", "convolution forward": "^",
        "convolution forward + backward": "v", "module": "P", "index": "*",
    }  # fmt: skip
    peers = [(found, found.strongest_peer) for found in shown if found.strongest_peer]
    axes.scatter(
        [intensity[found.name] for found, _ in peers],
        [found.operations / peer.median / 1e9 for found, peer in peers],
        s=14, facecolors="none", edgecolors=THEIRS, label="strongest peer of each",
    )  # fmt: skip
    for (family, marker), colour in zip(families.items(), (OURS, *COLOURS), strict=False):
        cases = [found for found in shown if _family(found.group, families) == family]
        if cases:
            speeds = [found.operations / found.hamlet.median / 1e9 for found in cases if found.hamlet]
            places = [intensity[found.name] for found in cases]
            axes.scatter(places, speeds, s=26, marker=marker, color=colour, label=f"HAMLET, {family}")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("necessary operations per necessary byte, FLOP/B")
    axes.set_ylabel("speed, GFLOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.grid(which="major", alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _family(group: str, families: Iterable[str]) -> str | None:
    if "growth" in group or "overhead" in group:
        return None
    return next((family for family in sorted(families, key=len, reverse=True) if group.startswith(family)), None)


def _roofs(axes: Axes, comparisons: list[Comparison], low: float, high: float) -> None:
    """The peak, and copies: within the caches and beyond them a copy has different speeds."""
    peaks, copies = [], []
    for found in comparisons:
        times = {yardstick.name: yardstick.median for yardstick in found.yardsticks}
        peaks.append(found.operations / times[PEAK] / 1e9)
        copies.append((found.bytes, found.bytes / times[COPY] / 1e9))
    peak = sorted(peaks)[len(peaks) // 2]
    largest, smallest = max(copies)[1], max(speed for _, speed in copies)
    axes.plot([low, high], [peak, peak], color=LIMIT, linewidth=1.2)
    axes.text(high, peak * 1.06, f"peak of float32 multiply-adds, {peak:.0f} GFLOP/s", ha="right", fontsize=8)
    for speed, style, place in ((smallest, ":", "fastest copy"), (largest, "-", "copy of the most bytes")):
        end = min(high, peak / speed)
        if end > low:
            axes.plot([low, end], [low * speed, end * speed], color=LIMIT, linestyle=style, linewidth=1.2,
                      label=f"{place}, {speed:.0f} GB/s")  # fmt: skip

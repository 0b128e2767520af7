"""The roofline."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.comparison import COPY, PEAK, Comparison
from bench.plots.style import COLOURS, LIMIT, OURS, THEIRS, plain_numbers

SAME = 1.15
"""So near to one another two roofs are drawn as one."""
FAMILIES = {
    "attention forward": "o", "attention forward + backward": "s", "pyramid": "D", "convolution forward": "^",
    "convolution forward + backward": "v", "module": "P", "index": "*",
}  # fmt: skip


def roofline(comparisons: list[Comparison]) -> Figure | None:
    """Each operator's case between the machine's peak and the speed of a copy, both as the same run measured them."""
    shown = [
        found
        for found in comparisons
        if found.bytes and {PEAK, COPY} <= {yardstick.name for yardstick in found.yardsticks if yardstick.measured}
        if found.operations and found.hamlet and _family(found.group)
    ]
    if not shown:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    intensity = {found.name: found.operations / found.bytes for found in shown}
    low, high = min(intensity.values()) / 2, max(intensity.values()) * 2
    _roofs(axes, shown, low, high)
    peers = [(found, found.strongest_peer) for found in shown if found.strongest_peer]
    axes.scatter(
        [intensity[found.name] for found, _ in peers],
        [found.operations / peer.median / 1e9 for found, peer in peers],
        s=14, facecolors="none", edgecolors=THEIRS, label="strongest peer of each",
    )  # fmt: skip
    for (family, marker), colour in zip(FAMILIES.items(), (OURS, *COLOURS), strict=False):
        cases = [found for found in shown if _family(found.group) == family]
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


def _family(group: str) -> str | None:
    if any(other in group for other in ("growth", "overhead", "1 thread")):
        return None
    return next((family for family in sorted(FAMILIES, key=len, reverse=True) if group.startswith(family)), None)


def _roofs(axes: Axes, comparisons: list[Comparison], low: float, high: float) -> None:
    """The peak of every dtype, and copies: within the caches and beyond them a copy has different speeds."""
    peaks: dict[str, list[float]] = {}
    copies = []
    for found in comparisons:
        times = {yardstick.name: yardstick.median for yardstick in found.yardsticks}
        peaks.setdefault(found.dtype, []).append(found.operations / times[PEAK] / 1e9)
        copies.append((found.bytes, found.bytes / times[COPY] / 1e9))
    roofs = {dtype: statistics.median(speeds) for dtype, speeds in peaks.items()}
    for names, peak in _alike(roofs):
        axes.plot([low, high], [peak, peak], color=LIMIT, linewidth=1.2)
        axes.text(high, peak * 1.03, f"peak, {names}: {peak:.0f} GFLOP/s", ha="right", va="bottom", fontsize=8)
    largest, smallest = max(copies)[1], max(speed for _, speed in copies)
    for speed, style, place in ((smallest, ":", "fastest copy"), (largest, "-", "copy of the most bytes")):
        end = min(high, max(roofs.values()) / speed)
        if end > low:
            axes.plot([low, end], [low * speed, end * speed], color=LIMIT, linestyle=style, linewidth=1.2,
                      label=f"{place}, {speed:.0f} GB/s")  # fmt: skip


def _alike(roofs: dict[str, float]) -> list[tuple[str, float]]:
    """Dtypes whose peaks would lie on one another have one roof."""
    found: list[tuple[str, float]] = []
    for dtype, peak in sorted(roofs.items(), key=lambda roof: roof[1]):
        if found and peak < SAME * found[-1][1]:
            found[-1] = (f"{found[-1][0]}, {dtype}", peak)
        else:
            found.append((dtype, peak))
    return found

"""Speed-ups as bars."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.comparison import Comparison
from bench.plots.style import LIMIT, LOST, OURS, plain_numbers

FAILED = 0.1
"""Where the bar of a case ends that HAMLET failed: no logarithm shows 0."""


def speedups(comparisons: list[Comparison]) -> Figure | None:
    """A bar a case: how many times less time than its strongest peer, to the right of 1, or to the left of it."""
    shown = [(found, found.ratio, found.strongest_peer) for found in comparisons if found.ratio is not None]
    if not shown:
        return None
    figure = Figure(figsize=(11, 1.3 + 0.24 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    ratios = [max(ratio, FAILED) for _, ratio, _ in shown]
    places = range(len(shown))
    left, right = min([0.8, *(ratio / 1.3 for ratio in ratios)]), max(ratios) * 6
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=[OURS if r >= 1 else LOST for r in ratios])
    for place, (_, ratio, peer) in zip(places, shown, strict=True):
        if peer is not None:
            said = f"{ratio:.2f}" if ratio else "failed"
            axes.text(max(ratio, 1) * 1.03, place, f"{said}  {peer.name}", va="center", fontsize=7)
    axes.set_yticks(places, [found.name for found, _, _ in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain_numbers(axes.xaxis)
    axes.axvline(1, color=LIMIT, linewidth=0.8)
    axes.set_xlabel("times faster than the strongest peer (named)")
    return figure

"""Curves: time by the work that is left, time and memory by the size."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bench.comparison import Comparison
from bench.plots.style import COLOURS, LIMIT, OURS, plain_numbers

NOISE = 0.25
"""MiB of peak memory that are no more than how Linux counts; the curves start there."""


def grows(comparison: Comparison) -> bool:
    return "growth with" in comparison.group


def adaptive(comparisons: list[Comparison]) -> Figure | None:
    """The time of drawn radii over that of the largest window, by the share of the pairs that is left of it."""
    groups = {
        way: sorted((found for found in comparisons if found.group == f"attention {way}, drawn radii"), key=_pairs)
        for way in ("forward", "forward + backward")
    }
    if not any(len(cases) > 1 for cases in groups.values()):
        return None
    figure = Figure(figsize=(11, 5), layout="constrained")
    for place, (way, cases) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot([0, 100], [0, 100], color=LIMIT, linestyle=":", linewidth=1, label="time in proportion to the work")
        for number, name in enumerate(_names(cases)):
            points = _series(cases, name, "pairs")
            if len(points) < 2:
                continue
            whole = points[-1][1] / points[-1][0]
            colour, width = (
                (OURS, 2.2)
                if cases[0].hamlet and name == cases[0].hamlet.name
                else (COLOURS[number % len(COLOURS)], 1.2)
            )
            axes.plot([100 * x for x, _ in points], [100 * y / whole for _, y in points], "o-", markersize=4,
                      color=colour, linewidth=width, label=name)  # fmt: skip
        axes.set(xlim=(0, 105), xlabel="pairs of the largest window that are left, %")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("time, % of the contender's own at the largest window")
        axes.set_title(f"{way}: {cases[0].title.rsplit(', ', 1)[0]}" if cases else way, fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    return figure


def _pairs(comparison: Comparison) -> float:
    return comparison.at["pairs"]


def growth(comparisons: list[Comparison], way: str) -> Figure | None:
    """Of one way: time above and peak memory below, by the grid's side, the batch, the heads and the levels."""
    axis_names = {"side": "side of the grid, pixels", "batch": "images a batch", "heads": "heads", "levels": "levels"}
    cases = [case for case in comparisons if grows(case) and case.group.endswith(f", {way}")]
    curves = {
        name: sorted((case for case in cases if name in case.at), key=lambda case, name=name: case.at[name])
        for name in axis_names
    }
    curves = {name: cases for name, cases in curves.items() if len(cases) > 1}
    if not curves:
        return None
    figure = Figure(figsize=(4.2 * len(curves) + 2.2, 7.5), layout="constrained")
    names = list(dict.fromkeys(name for cases in curves.values() for name in _names(cases)))
    others = [name for name in names if not name.startswith("HAMLET (native)")]
    colours = {name: COLOURS[others.index(name) % len(COLOURS)] if name in others else OURS for name in names}
    grid = figure.subplots(2, len(curves), squeeze=False, sharex="col")
    for column, (at, cases) in enumerate(curves.items()):
        for row, (what, scale) in enumerate((("time, ms", 1e3), (f"peak memory, MiB (from {NOISE})", 1 / 2**20))):
            axes = grid[row][column]
            for name in names:
                points = _series(cases, name, at, memory=row == 1)
                heights = [max(y * scale, NOISE * row) for _, y in points]
                axes.plot([x for x, _ in points], heights, "o-", markersize=3.5,
                          linewidth=2.2 if name not in others else 1.2, color=colours[name], label=name)  # fmt: skip
                if row == 0 and points and (failed := _failure(cases, name, at, points[-1][0])):
                    axes.plot(
                        [points[-1][0]], [points[-1][1] * scale], "x", color=colours[name], markersize=9, label="_"
                    )
                    axes.annotate(failed, (points[-1][0], points[-1][1] * scale), fontsize=6, color=colours[name],
                                  xytext=(-4, 6), textcoords="offset points", ha="right")  # fmt: skip
            _growth_axes(axes, [case.at[at] for case in cases], what, axis_names[at] if row else "", cases[-1])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def _growth_axes(axes: Axes, ticks: list[float], what: str, below: str, largest: Comparison) -> None:
    axes.set(xscale="log", yscale="log", ylabel=what, xlabel=below)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.25)
    if not below:
        axes.set_title(f"up to {largest.title}", fontsize=7)


def _failure(cases: list[Comparison], name: str, at: str, last: float) -> str | None:
    """What to say where a contender's curve ends before the others'."""
    later = (case for case in cases if case.at[at] > last)
    problem = next((outcome.problem for case in later for outcome in case.outcomes if outcome.name == name), None)
    if problem is None:
        return None
    return "out of memory" if "memory" in problem or "allocat" in problem else "cannot"


def _names(comparisons: list[Comparison]) -> list[str]:
    return list(dict.fromkeys(outcome.name for found in comparisons for outcome in found.timed))


def _series(comparisons: list[Comparison], name: str, at: str, *, memory: bool = False) -> list[tuple[float, float]]:
    points = []
    for found in comparisons:
        for outcome in found.timed:
            value = outcome.memory if memory else outcome.median
            if outcome.name == name and value is not None:
                points.append((found.at[at], float(value)))
    return points

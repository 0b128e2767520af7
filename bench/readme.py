"""The README's section on speed, made from the committed runs."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench import results
from bench.comparison import Comparison
from bench.markdown import by_group, losses, milliseconds, rows
from bench.results import RUN, Results

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- bench: what follows is written by `python -m bench.report --readme` -->"
END = "<!-- bench: end -->"
PICTURE = "speedups-attention"


def section(runs: list[Results]) -> str:
    """What stands between the two marks."""
    if not runs:
        return "No full run is committed yet."
    return "\n\n".join(_device(run) for run in runs)


def replaced(text: str, runs: list[Results]) -> str:
    """The README with its section made anew; ValueError where the marks are missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{README.name}: expected the lines {BEGIN!r} and {END!r} once each, in this order")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section(runs)}\n{END}{after}"


def without_reason(runs: list[Results]) -> list[str]:
    """The committed cases that HAMLET loses and that nobody has explained."""
    return [lost.name for run in runs for lost in run.losses if results.reason(lost) == results.NO_REASON]


def _device(run: Results) -> str:
    folder = f"bench/results/{run.name}"
    compared = [comparison for comparison in run.comparisons if comparison.ratio is not None]
    parts = [
        f"On {run.line} ([every table and plot]({folder}/tables.md), [raw]({folder}/{RUN})): how many times less time "
        "than the strongest peer of each case HAMLET takes, and which share of the machine's own limit it reaches.",
        "\n".join(rows(("", "cases", "least", "median", "most", "lost", "share of the limit"), _spans(compared))),
        f"![Every case of attention against its strongest peer]({folder}/{PICTURE}.png)",
    ]
    if alone := [comparison for comparison in run.comparisons if "backbone alone" in _yardsticks(comparison)]:
        headings = ("the whole model", "ms", "images/s", "backbone alone, ms", "MiB")
        parts.append("\n".join(rows(headings, map(_model, alone))))
    lost = losses(run)
    parts.append(
        "\n".join([f"HAMLET loses {len(lost)} of {len(compared)} cases{':' if lost else '.'}", "", *lost]).strip()
    )
    return "\n\n".join(parts)


def _spans(comparisons: list[Comparison]) -> list[list[str]]:
    families: dict[str, list[Comparison]] = {}
    for group, found in by_group(comparisons).items():
        families.setdefault(group.split(",")[0], []).extend(found)
    return [_span(name, found) for name, found in families.items()]


def _span(name: str, found: list[Comparison]) -> list[str]:
    ratios = [comparison.ratio for comparison in found if comparison.ratio is not None]
    shares = [comparison.limit / comparison.best.median for comparison in found if comparison.limit and comparison.best]
    return [
        name,
        str(len(ratios)),
        *(f"{value:.2f}" for value in (min(ratios), statistics.median(ratios), max(ratios))),
        str(sum(ratio < 1 for ratio in ratios)),
        f"{min(shares):.0%} to {max(shares):.0%}" if shares else "",
    ]


def _yardsticks(comparison: Comparison) -> dict[str, float]:
    return {yardstick.name: yardstick.median for yardstick in comparison.yardsticks if yardstick.measured}


def _model(comparison: Comparison) -> list[str]:
    best = comparison.best
    assert best is not None
    return [
        comparison.name.removeprefix("model, "),
        milliseconds(best.median),
        f"{comparison.items['images'] / best.median:.1f}",
        milliseconds(_yardsticks(comparison)["backbone alone"]),
        "" if best.memory is None else f"{best.memory / 2**20:.0f}",
    ]

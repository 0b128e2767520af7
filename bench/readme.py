"""The README's section on speed, made from the committed runs."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.comparison import Comparison
from bench.markdown import by_group, losses, milliseconds, rows
from bench.reasons import stale, unexplained
from bench.results import RUN, Results

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- bench: what follows is written by `python -m bench.report --readme` -->"
END = "<!-- bench: end -->"
PICTURE = "speedups-attention"
SPAN = ("", "cases", "least", "median", "most", "lost", "failed", "share of the limit")


def section(runs: list[Results]) -> str:
    """What stands between the two marks: the newest run, and where those on other machines are."""
    if not runs:
        return "No full run is committed yet."
    *others, newest = sorted(runs, key=lambda run: run.date)
    elsewhere = [f"- {run.line} ({_files(run)})" for run in reversed(others)]
    links = ["Other machines, and what HAMLET loses there:", "\n".join(elsewhere)] if others else []
    return "\n\n".join([_device(newest), *links])


def replaced(text: str, runs: list[Results]) -> str:
    """The README with its section made anew; ValueError where the marks are missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{README.name}: expected the lines {BEGIN!r} and {END!r} once each, in this order")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section(runs)}\n{END}{after}"


def check_reasons(runs: list[Results]) -> None:
    """ValueError where a committed run has a loss that no reason covers, or a reason names no case of any run."""
    if missing := [loss for run in runs for loss in unexplained(run.losses)]:
        raise ValueError("bench/reasons.yaml: expected a reason for each loss, and has none for " + "; ".join(missing))
    if runs and (left := stale(found.name for run in runs for found in run.comparisons)):
        raise ValueError("bench/reasons.yaml: expected a case of a kept run, and there is none for " + "; ".join(left))


def _device(run: Results) -> str:
    parts = [
        f"On {run.line} ({_files(run)}): how many times less time than the strongest peer of each case HAMLET takes, "
        "and which share of the machine's own limit it reaches.",
        "\n".join(rows(SPAN, _spans(run.comparisons))),
        f"![Every case of attention against its strongest peer]({_folder(run)}/{PICTURE}.png)",
    ]
    if alone := [comparison for comparison in run.comparisons if "backbone alone" in _yardsticks(comparison)]:
        headings = ("the whole model", "ms", "images/s", "backbone alone, ms", "MiB")
        parts.append("\n".join(rows(headings, map(_model, alone))))
    lost = [found for found in run.comparisons if found.losses]
    count = f"Of {len(run.comparisons)} cases HAMLET loses {len(lost)}; failed: {_failed(run.comparisons)}"
    noisy = f"; disturbed while they were timed: {len(run.noisy)}" if run.noisy else ""
    parts.append("\n".join([f"{count}{noisy}{':' if lost else '.'}", "", *losses(run)]).strip())
    return "\n\n".join(parts)


def _folder(run: Results) -> str:
    return f"bench/results/{run.name}"


def _files(run: Results) -> str:
    return f"[every table and plot]({_folder(run)}/tables.md), [raw]({_folder(run)}/{RUN})"


def _spans(comparisons: list[Comparison]) -> list[list[str]]:
    families: dict[str, list[Comparison]] = {}
    for group, found in by_group(comparisons).items():
        families.setdefault(group.split(",")[0], []).extend(found)
    return [_span(name, found) for name, found in families.items()]


def _span(name: str, found: list[Comparison]) -> list[str]:
    ratios = [comparison.ratio for comparison in found if comparison.ratio is not None]
    shares = [case.limit / case.hamlet.median for case in found if case.limit and case.hamlet]
    spread = (min(ratios), statistics.median(ratios), max(ratios)) if ratios else ()
    return [
        name,
        str(len(found)),
        *([f"{value:.2f}" for value in spread] or [""] * 3),
        str(sum(bool(comparison.losses) for comparison in found)),
        str(_failed(found)),
        f"{min(shares):.0%} to {max(shares):.0%}" if shares else "",
    ]


def _failed(comparisons: list[Comparison]) -> int:
    return sum(comparison.failed for comparison in comparisons)


def _yardsticks(comparison: Comparison) -> dict[str, float]:
    return {yardstick.name: yardstick.median for yardstick in comparison.yardsticks if yardstick.measured}


def _model(comparison: Comparison) -> list[str]:
    name, alone = comparison.name.removeprefix("model, "), milliseconds(_yardsticks(comparison)["backbone alone"])
    hamlet = comparison.hamlet
    if hamlet is None:
        return [name, "failed", "", alone, ""]
    speed, memory = comparison.items["images"] / hamlet.median, hamlet.memory
    return [
        name, milliseconds(hamlet.median), f"{speed:.1f}", alone, "" if memory is None else f"{memory / 2**20:.0f}",
    ]  # fmt: skip

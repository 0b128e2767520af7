"""The comparison as a person reads it in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.comparison import HAMLET, STEADY, Comparison, Outcome

WIDTH = 120
LEGEND = textwrap.fill(
    "median of interleaved rounds; *: the fastest; ratio: the strongest peer's time over HAMLET's as a user gets it, "
    "naming no backend: above 1 HAMLET is faster; GFLOP/s and GB/s: of the arithmetic and bytes that nobody can spare; "
    "% limit: the time that the machine needs for these at best, measured in the same rounds, over the contender's; "
    "MiB: what one run adds at its peak; noisy: meanwhile p80 over p20 of the machine's own peak was above "
    f"{STEADY}",
    WIDTH,
)


def show(comparisons: Iterable[Comparison], machine: str, console: Console | None = None) -> None:
    """Print a table for each case, the fastest contender marked, and below it why others have no time."""
    console = console or Console(width=WIDTH)
    console.print(Text(f"\n{machine}\n{LEGEND}"))
    for comparison in comparisons:
        console.print(_table(comparison))


def verdict(comparison: Comparison) -> str:
    """Who wins and by how much, or that HAMLET failed, or that the times are not to be trusted."""
    ratio, peer = comparison.ratio, comparison.strongest_peer
    won = [f"{ratio:.2f} x {peer.name}"] if peer and ratio is not None and ratio >= 1 else []
    lost = [f"{HAMLET} loses to {loss.winner}: {loss.ratio:.2f}" for loss in comparison.losses]
    said = [f"{HAMLET} failed"] * comparison.failed + won + lost
    return "; ".join((said or ["no peer"]) + ["noisy"] * comparison.noisy)


def headings(comparison: Comparison) -> list[str]:
    """The columns of a comparison's table, behind the contender's name."""
    found = ["median ms", "p20", "p80"]
    found += [f"{name}/s" for name in comparison.items] + ["GFLOP/s"] * bool(comparison.operations)
    found += ["GB/s"] * bool(comparison.bytes) + ["% limit"] * (comparison.limit is not None)
    found += [f"% {name}" for name in _others(comparison)]
    return [*found, "MiB"]


def cells(comparison: Comparison, outcome: Outcome) -> list[str]:
    """A contender's or a yardstick's row, as long as :func:`headings`."""
    if not outcome.measured:
        return [""] * len(headings(comparison))
    competes = outcome in comparison.outcomes
    rates = [comparison.operations / 1e9, comparison.bytes / 1e9]
    limit = comparison.limit
    bounds = [found for found in (limit, *_others(comparison).values()) if found is not None]
    return [
        *(f"{1e3 * seconds:.3f}" for seconds in (outcome.median, outcome.p20, outcome.p80)),
        *(f"{count / outcome.median:,.4g}" if competes else "" for count in comparison.items.values()),
        *(f"{rate / outcome.median:.1f}" for rate in rates if rate),
        *(f"{100 * bound / outcome.median:.0f}" if competes else "" for bound in bounds),
        f"{outcome.memory / 2**20:.1f}" if outcome.memory is not None else "",
    ]


def ordered(comparison: Comparison) -> list[Outcome]:
    """Contenders and yardsticks, the fastest first, those without a time last."""
    rows = [*comparison.outcomes, *comparison.yardsticks]
    return sorted(rows, key=lambda outcome: outcome.median if outcome.measured else float("inf"))


def _others(comparison: Comparison) -> dict[str, float]:
    return {
        found.name.split()[0]: found.median for found in comparison.yardsticks if found.name not in comparison.limits
    }


def _table(comparison: Comparison) -> Table:
    problems = "\n".join(f"{found.name}: {found.problem}" for found in comparison.outcomes if found.problem)
    title = Text("\n".join(filter(None, [f"{comparison.name} ({verdict(comparison)})", comparison.note])))
    table = Table(
        title=title, title_justify="left", caption=Text(problems), caption_justify="left", width=WIDTH, padding=(0, 1)
    )
    table.add_column("", width=1)
    table.add_column("contender", min_width=24)
    for heading in headings(comparison):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    fastest = comparison.fastest
    for outcome in ordered(comparison):
        remark = (
            "yardstick" if outcome in comparison.yardsticks else outcome.remark if outcome.measured else "see below"
        )
        mark = "*" if outcome is fastest else ""
        style = "bold" if outcome is fastest else None
        table.add_row(mark, outcome.name, *cells(comparison, outcome), remark, style=style)
    return table

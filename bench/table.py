"""The comparison as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.comparison import HAMLET, LIMITS, Comparison, Outcome

WIDTH = 120
LEGEND = (
    "median of interleaved rounds; *: the fastest; ratio: the strongest peer's time over HAMLET's, above 1 HAMLET is\n"
    "faster; GFLOP/s and GB/s: of the arithmetic and bytes that nobody can spare; % limit: the time that the machine\n"
    "needs for these at best, measured in the same rounds, over the contender's; MiB: what one run adds at its peak"
)


def show(comparisons: Iterable[Comparison], machine: str, console: Console | None = None) -> None:
    """Print a table for each case, the fastest contender marked, and below it why others have no time."""
    console = console or Console(width=WIDTH)
    console.print(Text(f"\n{machine}\n{LEGEND}"))
    for comparison in comparisons:
        console.print(_table(comparison))


def verdict(comparison: Comparison) -> str:
    ratio, peer = comparison.ratio, comparison.strongest_peer
    if ratio is None or peer is None:
        return "no ratio"
    if ratio < 1:
        return f"{HAMLET} loses to {peer.name}: {ratio:.2f}"
    return f"{ratio:.2f} x {peer.name}"


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
    return {found.name.split()[0]: found.median for found in comparison.yardsticks if found.name not in LIMITS}


def _table(comparison: Comparison) -> Table:
    problems = "\n".join(f"{found.name}: {found.problem}" for found in comparison.outcomes if found.problem)
    title = Text(f"{comparison.name} ({verdict(comparison)})")
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
        remark = "yardstick" if outcome in comparison.yardsticks else "" if outcome.measured else "see below"
        mark = "*" if outcome is fastest else ""
        style = "bold" if outcome is fastest else None
        table.add_row(mark, outcome.name, *cells(comparison, outcome), remark, style=style)
    return table

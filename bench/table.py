"""The comparison as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from bench.harness import HAMLET, Comparison, Outcome

WIDTH = 120


def show(comparisons: Iterable[Comparison], machine: str, console: Console | None = None) -> None:
    """Print a table for each case, the fastest contender marked, those without a time with their reason."""
    console = console or Console(width=WIDTH)
    console.print(f"\n{machine}")
    console.print(
        "median of interleaved rounds; ratio: the strongest peer's time over HAMLET's, above 1 HAMLET is faster;\n"
        "%: the time in a yardstick's row over the contender's; the peak's is that of the same arithmetic at the\n"
        "speed of float32 multiply-adds alone, measured in each round on as many threads"
    )
    for comparison in comparisons:
        console.print(_table(comparison))


def verdict(comparison: Comparison) -> str:
    ours = [outcome for outcome in comparison.timed if outcome.name.startswith(HAMLET)]
    peer = comparison.strongest_peer
    if not ours or peer is None:
        return "no ratio"
    best = min(ours, key=lambda outcome: outcome.median)
    return f"{peer.median / best.median:.2f} x {peer.name}"


def _table(comparison: Comparison) -> Table:
    table = Table(
        title=f"{comparison.group}: {comparison.title} ({verdict(comparison)})", title_justify="left", width=WIDTH
    )
    table.add_column("", width=1)
    table.add_column("contender", min_width=26)
    for heading in ("median ms", "p20", "p80", "GFLOP/s", "GB/s"):
        table.add_column(heading, justify="right")
    for yardstick in comparison.yardsticks:
        table.add_column(f"% {yardstick.name.split()[0]}", justify="right")
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    fastest = min(comparison.timed, key=lambda outcome: outcome.median, default=None)
    rows = [*comparison.outcomes, *comparison.yardsticks]
    for outcome in sorted(rows, key=lambda outcome: outcome.median if outcome.seconds else float("inf")):
        table.add_row(*_row(comparison, outcome, outcome is fastest), style="bold" if outcome is fastest else None)
    return table


def _row(comparison: Comparison, outcome: Outcome, fastest: bool) -> list[str]:
    if not outcome.seconds:
        return ["", outcome.name, *[""] * (5 + len(comparison.yardsticks)), outcome.problem or ""]
    times = [outcome.median, outcome.quantile(0.2), outcome.quantile(0.8)]
    rates = [comparison.operations, comparison.bytes]
    competes = outcome in comparison.outcomes
    shares = [yardstick.median / outcome.median for yardstick in comparison.yardsticks]
    return [
        "*" if fastest else "",
        outcome.name,
        *(f"{1e3 * seconds:.3f}" for seconds in times),
        *(f"{rate / outcome.median / 1e9:.1f}" if rate else "" for rate in rates),
        *(f"{100 * share:.0f}" if competes else "" for share in shares),
        "" if competes else "yardstick",
    ]

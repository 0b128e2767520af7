"""A run as Markdown: a summary of each group, what HAMLET loses and why, and every contender of every case."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench import table
from bench.comparison import Comparison
from bench.results import Results, reason

SUMMARY = (
    "case", "HAMLET ms", "p20 to p80", "strongest peer", "its ms", "ratio", "GFLOP/s", "GB/s", "% limit", "MiB",
    "its MiB",
)  # fmt: skip


def page(results: Results, plots: Iterable[str]) -> str:
    """The whole page; ``plots`` are names of pictures beside it."""
    return "\n".join(
        [
            f"# Measured {results.date} on {results.machine['device']}",
            "",
            results.line + ".",
            "",
            table.LEGEND.replace("\n", " ") + ".",
            "",
            *(f"![{name}]({name}.png)" for name in plots),
            "",
            "## What HAMLET loses",
            "",
            *(losses(results) or ["Nothing."]),
            "",
            "## Summary",
            *itertools.chain.from_iterable(
                _group(name, cases) for name, cases in by_group(results.comparisons).items()
            ),
            "",
            "## Every contender",
            *itertools.chain.from_iterable(_case(comparison) for comparison in results.comparisons),
            "",
        ]
    )


def losses(results: Results) -> list[str]:
    """A line for each case that a peer wins, with the reason."""
    return [
        f"- {lost.name}: {lost.ratio:.2f} of {lost.strongest_peer.name}'s speed. {reason(lost)}"
        for lost in results.losses
        if lost.strongest_peer is not None
    ]


def rows(headings: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *body]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def by_group(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.group, []).append(comparison)
    return groups


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _group(name: str, comparisons: list[Comparison]) -> list[str]:
    return ["", f"### {name}", "", *rows(SUMMARY, (_summary(comparison) for comparison in comparisons))]


def _summary(comparison: Comparison) -> list[str]:
    best, peer, limit = comparison.best, comparison.strongest_peer, comparison.limit
    if best is None:
        return [comparison.title, comparison.outcomes[0].problem or "", *[""] * (len(SUMMARY) - 2)]
    speeds = [comparison.operations / best.median / 1e9, comparison.bytes / best.median / 1e9]
    return [
        comparison.title,
        milliseconds(best.median),
        f"{milliseconds(best.p20)} to {milliseconds(best.p80)}",
        peer.name if peer else "",
        milliseconds(peer.median) if peer else "",
        _ratio(comparison),
        *(f"{speed:.1f}" if speed else "" for speed in speeds),
        f"{100 * limit / best.median:.0f}" if limit else "",
        _mebibytes(best.memory),
        _mebibytes(peer.memory) if peer else "",
    ]


def _ratio(comparison: Comparison) -> str:
    ratio = comparison.ratio
    if ratio is None:
        return ""
    return f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f} (loses)"


def _mebibytes(memory: int | None) -> str:
    return "" if memory is None else f"{memory / 2**20:.1f}"


def _case(comparison: Comparison) -> list[str]:
    body = []
    for outcome in table.ordered(comparison):
        name = f"**{outcome.name}**" if outcome is comparison.fastest else outcome.name
        name = f"*{name}* (yardstick)" if outcome in comparison.yardsticks else name
        rounds = str(outcome.rounds) if outcome.measured else ""
        body.append([name, *table.cells(comparison, outcome), rounds, outcome.problem or ""])
    headings = ["contender", *table.headings(comparison), "rounds", "why not"]
    return ["", f"### {comparison.name} ({table.verdict(comparison)})", "", *rows(headings, body)]

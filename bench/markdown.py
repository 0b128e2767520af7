"""A run as Markdown: a summary of each group, what HAMLET loses and why, and every contender of every case."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench import table
from bench.comparison import Comparison
from bench.reasons import reason
from bench.results import Results

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
    """A line for each case that a peer, or another way of HAMLET's own, does in less time, with the reason."""
    return [f"- {loss.case}: {loss.ratio:.2f} of the speed of {loss.winner}. {reason(loss)}" for loss in results.losses]


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
    hamlet, peer, limit = comparison.hamlet, comparison.strongest_peer, comparison.limit
    title = f"{comparison.title} (noisy)" if comparison.noisy else comparison.title
    theirs = [peer.name, milliseconds(peer.median)] if peer else ["", ""]
    their_memory = _mebibytes(peer.memory) if peer else ""
    if hamlet is None:
        return [title, "failed", "", *theirs, _ratio(comparison), "", "", "", "", their_memory]
    speeds = [comparison.operations / hamlet.median / 1e9, comparison.bytes / hamlet.median / 1e9]
    return [
        title,
        milliseconds(hamlet.median),
        f"{milliseconds(hamlet.p20)} to {milliseconds(hamlet.p80)}",
        *theirs,
        _ratio(comparison),
        *(f"{speed:.1f}" if speed else "" for speed in speeds),
        f"{100 * limit / hamlet.median:.0f}" if limit else "",
        _mebibytes(hamlet.memory),
        their_memory,
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
        body.append([name, *table.cells(comparison, outcome), rounds, outcome.problem or outcome.remark])
    headings = ["contender", *table.headings(comparison), "rounds", "remark"]
    said = [comparison.note, ""] if comparison.note else []
    return ["", f"### {comparison.name} ({table.verdict(comparison)})", "", *said, *rows(headings, body)]

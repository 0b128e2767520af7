"""What an ablation found: a table in Markdown, the numbers as JSON, and a picture."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hamlet.environment import machine, version
from hamlet.files import replacing, write_json
from hamlet.settings import to_plain
from hamlet.training.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """A variant's mAP with each seed, on the pictures held out, of the weights at the end of training."""

    variant: str
    maps: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.maps)

    @property
    def deviation(self) -> float:
        """The sample standard deviation over the seeds; NaN with one."""
        return statistics.stdev(self.maps) if len(self.maps) > 1 else float("nan")

    def minus(self, other: Row) -> Row:
        """The differences from another variant, seed by seed.

        The same seed is the same order of samples and views, so they vary less than the figures do.
        """
        pairs = zip(self.maps, other.maps, strict=False)
        return Row(self.variant, tuple(one - its for one, its in pairs))


def write_results(out: Path, rows: Sequence[Row], recipe: Recipe, seeds: Sequence[int]) -> None:
    """Write results.json, table.md and, with two rows or more, table.png; the others are compared with the first.

    The version and the machine in results.json are those of the last run.
    """
    variants: list[dict[str, Any]] = []
    for row in rows:
        difference = row.minus(rows[0])
        variants.append({"variant": row.variant, **_numbers(row), "difference": _numbers(difference)})
    where = {"version": version(), "machine": machine()}
    write_json(out / "results.json", {"recipe": to_plain(recipe), **where, "seeds": list(seeds), "variants": variants})
    with replacing(out / "table.md") as file:
        file.write(table(rows).encode())
    if len(rows) > 1:
        with replacing(out / "table.png") as file:
            file.write(draw(rows))


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, mAP in percent; differences are from the first row, seed by seed.

    Example:
        >>> print(table([Row("HAMLET", (0.5, 0.52)), Row("no ACSA", (0.47, 0.51))]))
        | | mAP | deviation | difference | its deviation | seeds |
        |---|---|---|---|---|---|
        | HAMLET | 51.00 | 1.41 | | | 2 |
        | no ACSA | 49.00 | 2.83 | -2.00 | 1.41 | 2 |
        <BLANKLINE>
    """
    lines = ["| | mAP | deviation | difference | its deviation | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        apart = ("", "")
        if row is not rows[0]:
            difference = row.minus(rows[0])
            apart = (f" {100 * difference.mean:+.2f}", f" {_percent(difference.deviation)}")
        figures = f"{100 * row.mean:.2f} | {_percent(row.deviation)} |{apart[0]} |{apart[1]} | {len(row.maps)}"
        lines.append(f"| {row.variant} | {figures} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row]) -> bytes:
    """Each variant's difference from the first row: a point a seed, their mean and deviation; the bytes of a PNG."""
    from matplotlib.figure import Figure

    full, *others = rows
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(others):
        difference = row.minus(full)
        axes.plot([100 * each for each in difference.maps], [place] * len(difference.maps), "o", color="tab:blue")
        spread = 100 * difference.deviation if len(difference.maps) > 1 else None
        axes.errorbar(100 * difference.mean, place, xerr=spread, fmt="D", color="black", capsize=5, markersize=4)
    axes.axvline(0, color="grey", linestyle="--")
    axes.set(
        yticks=range(len(others)),
        yticklabels=[row.variant for row in others],
        ylim=(len(others) - 0.5, -0.5),
        xlabel=f"mAP less that of {full.variant} with the same seed, in points (dots: seeds, diamond: mean, deviation)",
    )
    figure.suptitle(f"{full.variant}: mAP {100 * full.mean:.2f}, deviation {_percent(full.deviation)}", fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _numbers(row: Row) -> dict[str, Any]:
    # JSON knows no NaN.
    return {"map": row.maps, "mean": row.mean, "deviation": row.deviation if len(row.maps) > 1 else None}


def _percent(deviation: float) -> str:
    return "" if deviation != deviation else f"{100 * deviation:.2f}"

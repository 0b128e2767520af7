"""The page of an evaluation: what was measured, and what the queries found, the worst of them first."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hamlet.images import ImageList, UnreadableImage
from hamlet.retrieval.datasets import Benchmark, Ranking
from hamlet.retrieval.metrics import Scores
from hamlet.retrieval.report import (
    MAPS_CAPTION,
    Figure,
    Picture,
    Ranked,
    RankedSection,
    Section,
    Table,
    picture_with_maps,
    write_report,
)

QUERIES_SHOWN = 30
QUERIES_LISTED = 1000
RESULTS_SHOWN = 10
_RECALLS = np.linspace(0, 1, 101)


class Found:
    """What the page needs of rankings, which are gone before it is written: the first places, and the curves.

    Attributes:
        rows, scores: (queries, places), database images and their scores, -1 where there is none; a query that is in
            the database by itself is left out of its own places.
        precisions: setup -> float64 (101,), for recalls of 0, 0.01, ... 1 the mean over queries of the largest
            precision at that recall or a larger one; of setups that have an answer to any query.
    """

    def __init__(self, benchmark: Benchmark, queries: int) -> None:
        self.benchmark = benchmark
        self.rows = np.full((queries, RESULTS_SHOWN), -1)
        self.scores = np.zeros((queries, RESULTS_SHOWN), dtype=np.float32)
        self._sums = {setup: np.zeros(len(_RECALLS)) for setup in benchmark.setups}
        self._counts = dict.fromkeys(benchmark.setups, 0)

    @property
    def precisions(self) -> dict[str, NDArray[np.float64]]:
        return {setup: self._sums[setup] / count for setup, count in self._counts.items() if count}

    def add(self, ranking: Ranking) -> None:
        for column, query in enumerate(ranking.queries.tolist()):
            rows, scores = ranking.rows[:, column], ranking.scores[:, column]
            if self.benchmark.queries is None:
                rows, scores = rows[rows != query], scores[rows != query]
            first = rows[:RESULTS_SHOWN]
            self.rows[query, : len(first)] = first
            self.scores[query, : len(first)] = scores[:RESULTS_SHOWN]
            for setup in self.benchmark.setups:
                if positives := self.benchmark.positives(query, setup):
                    verdicts = self.benchmark.verdicts(query, rows, setup)
                    self._sums[setup] += interpolated_precision(verdicts[verdicts >= 0] == 1, positives)
                    self._counts[setup] += 1


def interpolated_precision(hits: NDArray[np.bool_], positives: int) -> NDArray[np.float64]:
    """For each recall 0, 0.01, ... 1 the largest precision at that recall or a larger one; 0 where none is reached.

    Args:
        hits: (places,), which places are right.
        positives: how many there are to be found.

    Source: Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), §8.4.

    >>> interpolated_precision(np.array([True, False, True]), 4)[[0, 25, 26, 50, 51]].round(3).tolist()
    [1.0, 1.0, 0.667, 0.667, 0.0]
    """
    places = np.flatnonzero(hits) + 1
    found = np.arange(1, len(places) + 1)
    best = np.maximum.accumulate((found / places)[::-1])[::-1]
    # A recall of 0.07 is no less than 7 of 100, whatever its last bits.
    needed = np.maximum(np.ceil(_RECALLS * positives - 1e-9).astype(int), 1)
    return np.where(needed <= len(places), np.append(best, 0.0)[np.minimum(needed, len(places) + 1) - 1], 0.0)


def write_evaluation_report(
    path: Path | str,
    result: Mapping[str, Any],
    scores: Mapping[str, Scores],
    found: Found,
    model: nn.Module,
) -> Path:
    """Write the self-contained page and return its path.

    Args:
        path: of the HTML file.
        result: what :func:`hamlet.retrieval.evaluate.evaluate` returns.
        scores: setup -> measure -> (queries,), what it averages.
        found: what the queries found.
        model: whose maps are drawn over the queries, if it is one of this package's.
    """
    measure, per_query = main_scores(found.benchmark, scores)
    metrics = result["metrics"]
    measures = list(next(iter(metrics.values())))
    accuracy = [[setup, *(_percent(values[name]) for name in measures)] for setup, values in metrics.items()]
    sections: list[Section] = [Table("Accuracy, in percent", ["", *measures], accuracy)]
    if found.precisions:
        caption = "Mean over the queries of the largest precision at each recall or a larger one."
        sections.append(Figure("Precision and recall", _draw_curves(found.precisions), caption))
    answered = int((~np.isnan(per_query)).sum())
    worst = np.argsort(per_query, kind="stable")[: min(QUERIES_LISTED, answered)].tolist()
    told = "average precision" if measure.startswith("map") else measure
    shown = worst[:QUERIES_SHOWN]
    rows = [_row(found, query, f"{told} {100 * per_query[query]:.1f}%", model) for query in shown]
    sections.append(RankedSection(f"{_which(shown, answered)}, worst first", rows, _CAPTION))
    listed = [
        [_query(found.benchmark, query)[1], *(_percent(setup[measure][query]) for setup in scores.values())]
        for query in worst
    ]
    sections.append(Table(f"{told.capitalize()} of {_which(worst, answered).lower()}", ["", *scores], listed))
    sections.append(Table("Cost of one image", ["", ""], list(result["cost"].items())))
    if unreadable := [*result["unreadable"], *result["unreadable_queries"]]:
        sections.append(Table("Images that could not be read", ["image", "reason"], unreadable))
    return write_report(path, f"{result['dataset']}: evaluation", sections, lead=_lead(result))


def main_scores(benchmark: Benchmark, scores: Mapping[str, Scores]) -> tuple[str, NDArray[np.float64]]:
    """The measure that tells queries good from bad, and its value for each; NaN for those without an answer."""
    setups = benchmark.main_setups
    measure = next(iter(scores[setups[0]]))
    values = scores[setups[0]][measure].copy()
    for setup in setups[1:]:
        values = np.where(np.isnan(values), scores[setup][measure], values)
    return measure, values


_CAPTION = f"Green: right. Red: wrong. Dashed: neither, by the ground truth. {MAPS_CAPTION}"


def _lead(result: Mapping[str, Any]) -> str:
    steps = ", ".join(step["name"] for step in result["rerank"])
    settings = [
        f"{result['queries']} queries, {'cropped' if result['queries_cropped'] else 'whole'}, "
        f"against {result['database']} images",
        f"longest side {result['longest_side']} pixels",
        f"scales {', '.join(f'{scale:g}' for scale in result['scales'])}",
        "whitened" if result["whitened"] else "not whitened",
        f"re-ranked by {steps}" if steps else "not re-ranked",
    ]
    return "; ".join(settings) + "."


def _which(queries: Sequence[int], answered: int) -> str:
    if len(queries) < answered:
        return f"The {len(queries)} worst of {answered} queries"
    return f"All {answered} queries" if answered != 1 else "The one query"


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else 100 * value


def _row(found: Found, query: int, note: str, model: nn.Module) -> Ranked:
    benchmark = found.benchmark
    places = found.rows[query] >= 0
    rows = found.rows[query][places]
    results = []
    scores = found.scores[query][places].tolist()
    verdicts = benchmark.verdicts(query, rows, benchmark.main_setups[0]).tolist()
    for row, score, verdict in zip(rows.tolist(), scores, verdicts, strict=True):
        images, name = benchmark.picture(row)
        results.append(Picture(_locate(images, name), name, score=score, correct=verdict == 1, junk=verdict == -1))
    return Ranked(_query_picture(benchmark, query, model), results, note)


def _query_picture(benchmark: Benchmark, query: int, model: nn.Module) -> Picture:
    images, name = _query(benchmark, query)
    boxes = benchmark.queries.boxes if benchmark.queries is not None else None
    path = _locate(images, name)
    if isinstance(path, UnreadableImage):
        return Picture(path, name)
    return picture_with_maps(model, path, name, boxes[query] if boxes is not None else None)


def _query(benchmark: Benchmark, query: int) -> tuple[ImageList, str]:
    """The images that a query is one of, and its name among them."""
    if benchmark.queries is None:
        return benchmark.picture(query)
    return benchmark.queries.images, benchmark.queries.images.names[query]


def _locate(images: ImageList, name: str) -> Path | UnreadableImage:
    # A link may leave the folder: the page must not show where to, and the evaluation not end for it.
    try:
        return images.path(name)
    except ValueError as error:
        return UnreadableImage(str(error))


def _draw_curves(precisions: Mapping[str, NDArray[np.float64]]) -> bytes:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(5, 3.6), layout="constrained")
    axes = drawing.add_subplot()
    for setup, curve in precisions.items():
        axes.plot(_RECALLS, curve, label=setup)
    axes.legend()
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()

"""Oxford and Paris: average precision where junk is neither right nor wrong.

The original benchmarks (Philbin et al., CVPR 2007 and 2008; their ``compute_ap``) and the revisited ones (Radenović et
al., CVPR 2018) share one average precision, and differ in what is a positive and what is junk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamlet.retrieval.metrics.common import Scores, check_ks, check_ranks, mean

GroundTruth = Sequence[Mapping[str, Sequence[int]]]
# Setup: (positive, junk). What is neither is a negative.
Protocols = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

ORIGINAL: Protocols = {"original": (("good", "ok"), ("junk",))}
REVISITED: Protocols = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def oxford(ranks: ArrayLike, gnd: GroundTruth, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """mAP and P@k of the original Oxford5k and Paris6k benchmarks (Philbin et al., CVPR 2007).

    Junk is taken out of the ranking. AP is the area under the precision-recall curve by trapezoids, from precision 1 at
    recall 0. P@k divides by k.

    Args:
        ranks: int (database, queries): column q holds database indices, the best first.
        gnd: one mapping a query with lists of database indices under "good", "ok" (positives) and "junk".
        ks: cut-offs of the precision.

    Returns:
        {"map": ..., "p@1": ..., ...}, each from 0 to 1; queries without a positive leave the averages.

    Raises:
        ValueError: as :func:`revisited_per_query`.

    >>> oxford([[2], [1], [0]], [{"good": [0], "ok": [], "junk": [2]}], ks=(1, 2))
    {'map': 0.25, 'p@1': 0.0, 'p@2': 0.5}
    """
    return {name: mean(values) for name, values in oxford_per_query(ranks, gnd, ks).items()}


def oxford_per_query(ranks: ArrayLike, gnd: GroundTruth, ks: Sequence[int] = (1, 5, 10)) -> Scores:
    """What :func:`oxford` averages: {"map": float64 (queries,), "p@k": ...}, NaN without a positive."""
    return _per_query(ranks, gnd, ks, ORIGINAL, "p@", _precision_at)["original"]


def revisited(ranks: ArrayLike, gnd: GroundTruth, ks: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, float]]:
    """mAP and mP@k of the revisited Oxford and Paris benchmarks (Radenović et al., CVPR 2018).

    Queries without a positive under a protocol leave its averages; a protocol without any query that has one gives NaN.

    Args:
        ranks: int (database, queries): column q holds database indices, the best first.
        gnd: one mapping a query with lists of database indices under "easy", "hard" and "junk".
        ks: cut-offs of the precision.

    Returns:
        {"easy": {"map": ..., "mp@1": ..., ...}, "medium": {...}, "hard": {...}}, each from 0 to 1.

    Raises:
        ValueError: as :func:`revisited_per_query`.

    >>> revisited([[2], [0], [1]], [{"easy": [0], "hard": [1], "junk": [2]}], ks=(1,))["medium"]
    {'map': 1.0, 'mp@1': 1.0}
    """
    return {
        protocol: {name: mean(values) for name, values in scores.items()}
        for protocol, scores in revisited_per_query(ranks, gnd, ks).items()
    }


def revisited_per_query(ranks: ArrayLike, gnd: GroundTruth, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Scores]:
    """What :func:`revisited` averages: protocol -> {"map": float64 (queries,), "mp@k": ...}, NaN without a positive.

    A positive that the ranking leaves out counts as never found.

    Raises:
        ValueError: ranks that are not a matrix of integers with a column a query, negative or repeated indices among
            a query's labelled images, a missing list, an index in two lists of one query, a k below 1.
    """
    return _per_query(ranks, gnd, ks, REVISITED, "mp@", _precision_within)


def _per_query(
    ranks: ArrayLike,
    gnd: GroundTruth,
    ks: Sequence[int],
    protocols: Protocols,
    prefix: str,
    precision: Callable[[NDArray[np.int64], int, int], float],
) -> dict[str, Scores]:
    ranking = check_ranks(ranks, len(gnd))
    check_ks(ks)
    result = {
        protocol: {name: np.full(len(gnd), np.nan) for name in ("map", *(f"{prefix}{k}" for k in ks))}
        for protocol in protocols
    }
    names = list(dict.fromkeys(name for lists in protocols.values() for names in lists for name in names))
    size = int(ranking.max(initial=-1)) + 1
    for query, truth in enumerate(gnd):
        kinds = _kinds(truth, query, names, size)
        column = kinds[ranking[:, query]]
        labelled = np.flatnonzero(column)
        found = ranking[labelled, query]
        if len(np.unique(found)) != len(found):
            raise ValueError(f"ranks: column {query} holds an index twice, expected every database image at most once")
        for protocol, lists in protocols.items():
            positive, junk = ([names.index(name) + 1 for name in each] for each in lists)
            total = int(np.isin(kinds, positive).sum())
            if total:
                is_junk = np.isin(column[labelled], junk)
                is_positive = np.isin(column[labelled], positive)
                positions = (labelled - np.cumsum(is_junk))[is_positive]
                result[protocol]["map"][query] = _trapezoidal_precision(positions, total)
                for k in ks:
                    result[protocol][f"{prefix}{k}"][query] = precision(positions, total, k)
    return result


def _kinds(truth: Mapping[str, Sequence[int]], query: int, names: Sequence[str], size: int) -> NDArray[np.int8]:
    """For every database index the number of the list, from 1, that one query has it in, or 0."""
    lists = []
    for name in names:
        if name not in truth:
            raise ValueError(f"gnd: query {query} has no {name!r}, expected lists {', '.join(map(repr, names))}")
        lists.append(np.unique(np.asarray(truth[name], dtype=np.int64)))
        if lists[-1].size and lists[-1][0] < 0:
            raise ValueError(f"gnd: query {query}, {name!r}: got {lists[-1][0]}, expected a database index")
    together = np.concatenate(lists)
    if len(np.unique(together)) != len(together):
        raise ValueError(f"gnd: query {query} has an index in two lists, expected {', '.join(names)} to be disjoint")
    kinds = np.zeros(max(size, int(together.max(initial=-1)) + 1), dtype=np.int8)
    for kind, indices in enumerate(lists, start=1):
        kinds[indices] = kind
    return kinds


def _trapezoidal_precision(positions: NDArray[np.int64], total: int) -> float:
    """Area under the precision-recall curve by trapezoids; positions are 0-based ranks of the positives, ascending."""
    before = np.arange(len(positions))
    left = np.where(positions == 0, 1.0, before / np.maximum(positions, 1))
    right = (before + 1) / (positions + 1)
    return float((left + right).sum() / (2 * total))


def _precision_at(positions: NDArray[np.int64], total: int, k: int) -> float:
    return float((positions < k).sum() / k)


def _precision_within(positions: NDArray[np.int64], total: int, k: int) -> float:
    """Precision at k, or at the last positive where that comes earlier."""
    last = int(positions[-1]) + 1 if len(positions) == total else k
    cut = min(last, k)
    return float((positions < cut).sum() / cut)

"""Metrics of retrieval: the revisited Oxford and Paris protocol, and mAP and precision at k over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EASY, _HARD, _JUNK = 1, 2, 3
# Protocol: (positive, junk). What is neither is a negative.
PROTOCOLS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "easy": ((_EASY,), (_JUNK, _HARD)),
    "medium": ((_EASY, _HARD), (_JUNK,)),
    "hard": ((_HARD,), (_JUNK, _EASY)),
}

Scores = dict[str, NDArray[np.float64]]


def revisited(
    ranks: ArrayLike, gnd: Sequence[Mapping[str, Sequence[int]]], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
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


def revisited_per_query(
    ranks: ArrayLike, gnd: Sequence[Mapping[str, Sequence[int]]], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, Scores]:
    """What :func:`revisited` averages: protocol -> {"map": float64 (queries,), "mp@k": ...}, NaN without a positive.

    A positive that the ranking leaves out counts as never found.

    Raises:
        ValueError: ranks that are not a matrix of integers with a column a query, negative or repeated indices among
            a query's labelled images, a missing list, an index in two lists of one query, a k below 1.
    """
    ranking = _check_ranks(ranks, len(gnd))
    _check_ks(ks)
    result = {
        protocol: {name: np.full(len(gnd), np.nan) for name in ("map", *(f"mp@{k}" for k in ks))}
        for protocol in PROTOCOLS
    }
    size = int(ranking.max(initial=-1)) + 1
    for query, truth in enumerate(gnd):
        kinds = _kinds(truth, query, size)
        column = kinds[ranking[:, query]]
        labelled = np.flatnonzero(column)
        found = ranking[labelled, query]
        if len(np.unique(found)) != len(found):
            raise ValueError(f"ranks: column {query} holds an index twice, expected every database image at most once")
        for protocol, (positive, junk) in PROTOCOLS.items():
            total = sum(int((kinds == kind).sum()) for kind in positive)
            if total:
                is_junk = np.isin(column[labelled], junk)
                is_positive = np.isin(column[labelled], positive)
                positions = (labelled - np.cumsum(is_junk))[is_positive]
                result[protocol]["map"][query] = _trapezoidal_precision(positions, total)
                for k in ks:
                    result[protocol][f"mp@{k}"][query] = _precision_within(positions, total, k)
    return result


def labelled(
    ranks: ArrayLike,
    database_labels: ArrayLike,
    query_labels: ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    *,
    exclude: ArrayLike | None = None,
) -> dict[str, float]:
    """mAP and P@k where an image is relevant if it has the query's label.

    AP is the mean of the precisions at the relevant images, those that the ranking leaves out counting 0; P@k divides
    by k. Queries without a relevant image leave the averages.

    Args:
        ranks: int (database or less, queries): column q holds database indices, the best first.
        database_labels: (database,) of any type that compares equal.
        query_labels: (queries,).
        ks: cut-offs of the precision.
        exclude: int (queries,): for each query a database index that is no candidate, as the query itself is in
            leave-one-out; it is taken out of the ranking and of the relevant images.

    Returns:
        {"map": ..., "p@1": ..., ...}, each from 0 to 1.

    >>> labelled([[0], [1], [2]], ["tower", "bridge", "tower"], ["tower"], ks=(1, 2))
    {'map': 0.8333333333333333, 'p@1': 1.0, 'p@2': 0.5}
    """
    scores = labelled_per_query(ranks, database_labels, query_labels, ks, exclude=exclude)
    return {name: mean(values) for name, values in scores.items()}


def labelled_per_query(
    ranks: ArrayLike,
    database_labels: ArrayLike,
    query_labels: ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
    *,
    exclude: ArrayLike | None = None,
) -> Scores:
    """What :func:`labelled` averages: {"map": float64 (queries,), "p@k": ...}, NaN where nothing is relevant."""
    database, queries = np.asarray(database_labels), np.asarray(query_labels)
    ranking = _check_ranks(ranks, len(queries))
    _check_ks(ks)
    if ranking.max(initial=-1) >= len(database):
        raise ValueError(f"ranks: got index {ranking.max()}, expected below the {len(database)} database labels")
    ordered = np.sort(ranking, axis=0)
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("ranks: a column holds an index twice, expected every database image at most once")
    relevant = (database[:, None] == queries[None, :]).sum(axis=0)
    hits = database[ranking] == queries[None, :]
    positions = np.broadcast_to(np.arange(1, len(ranking) + 1)[:, None], ranking.shape)
    if exclude is not None:
        excluded = np.asarray(exclude)
        if excluded.shape != queries.shape or not np.issubdtype(excluded.dtype, np.integer):
            raise ValueError(f"exclude: got {excluded.dtype} {excluded.shape}, expected an integer for each query")
        left_out = ranking == excluded[None, :]
        positions = positions - np.cumsum(left_out, axis=0)
        relevant = relevant - (database[excluded] == queries)
        hits = hits & ~left_out
    precisions = np.cumsum(hits, axis=0) / np.maximum(positions, 1)
    with np.errstate(invalid="ignore"):
        scores = {"map": np.where(hits, precisions, 0.0).sum(axis=0) / relevant}
    for k in ks:
        scores[f"p@{k}"] = np.where(relevant > 0, (hits & (positions <= k)).sum(axis=0) / k, np.nan)
    return scores


def _kinds(truth: Mapping[str, Sequence[int]], query: int, size: int) -> NDArray[np.int8]:
    """Label of every database index for one query: easy, hard, junk, or 0."""
    lists = {}
    for name in ("easy", "hard", "junk"):
        if name not in truth:
            raise ValueError(f"gnd: query {query} has no {name!r}, expected lists 'easy', 'hard' and 'junk'")
        lists[name] = np.unique(np.asarray(truth[name], dtype=np.int64))
        if lists[name].size and lists[name][0] < 0:
            raise ValueError(f"gnd: query {query}, {name!r}: got {lists[name][0]}, expected a database index")
    together = np.concatenate(list(lists.values()))
    if len(np.unique(together)) != len(together):
        raise ValueError(f"gnd: query {query} has an index in two lists, expected easy, hard and junk to be disjoint")
    kinds = np.zeros(max(size, int(together.max(initial=-1)) + 1), dtype=np.int8)
    for kind, indices in zip((_EASY, _HARD, _JUNK), lists.values(), strict=True):
        kinds[indices] = kind
    return kinds


def _trapezoidal_precision(positions: NDArray[np.int64], total: int) -> float:
    """Area under the precision-recall curve by trapezoids; positions are 0-based ranks of the positives, ascending."""
    before = np.arange(len(positions))
    left = np.where(positions == 0, 1.0, before / np.maximum(positions, 1))
    right = (before + 1) / (positions + 1)
    return float((left + right).sum() / (2 * total))


def _precision_within(positions: NDArray[np.int64], total: int, k: int) -> float:
    """Precision at k, or at the last positive where that comes earlier."""
    last = int(positions[-1]) + 1 if len(positions) == total else k
    cut = min(last, k)
    return float((positions < cut).sum() / cut)


def _check_ranks(ranks: ArrayLike, queries: int) -> NDArray[np.int64]:
    ranking = np.asarray(ranks)
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer) or ranking.shape[1] != queries:
        raise ValueError(
            f"ranks: got {ranking.dtype} {ranking.shape}, expected integers (database, queries) with {queries} queries"
        )
    if ranking.min(initial=0) < 0:
        raise ValueError(f"ranks: got {ranking.min()}, expected database indices from 0")
    return ranking


def _check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"ks: got {tuple(ks)}, expected cut-offs of at least 1")


def mean(values: NDArray[np.float64]) -> float:
    """Mean over the queries that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")

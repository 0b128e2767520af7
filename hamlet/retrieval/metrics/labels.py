"""mAP and precision at k where images of one label are right for each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamlet.retrieval.metrics.common import Scores, check_ks, check_ranks, mean


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

    Raises:
        ValueError: ranks that are not a matrix of integers with a column a query, indices that are negative, repeated
            or beyond the labels, a k below 1, ``exclude`` of another shape.

    Source: Manning, Raghavan and Schütze, Introduction to Information Retrieval (2008), §8.4.

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
    ranking = check_ranks(ranks, len(queries))
    check_ks(ks)
    if ranking.max(initial=-1) >= len(database):
        raise ValueError(f"ranks: got index {ranking.max()}, expected below the {len(database)} database labels")
    excluded = _check_exclude(exclude, len(queries), len(database))
    result = {name: np.full(len(queries), np.nan) for name in ("map", *(f"p@{k}" for k in ks))}
    for query, label in enumerate(queries):
        relevant = database == label
        column = ranking[:, query]
        if np.bincount(column, minlength=len(database)).max(initial=0) > 1:
            raise ValueError(f"ranks: column {query} holds an index twice, expected every database image at most once")
        if excluded is not None:
            relevant[excluded[query]] = False
            column = column[column != excluded[query]]
        total = int(relevant.sum())
        if total:
            places = np.flatnonzero(relevant[column]) + 1
            result["map"][query] = (np.arange(1, len(places) + 1) / places).sum() / total
            for k in ks:
                result[f"p@{k}"][query] = (places <= k).sum() / k
    return result


def _check_exclude(exclude: ArrayLike | None, queries: int, database: int) -> NDArray[Any] | None:
    if exclude is None:
        return None
    excluded = np.asarray(exclude)
    if excluded.shape != (queries,) or not np.issubdtype(excluded.dtype, np.integer):
        raise ValueError(f"exclude: got {excluded.dtype} {excluded.shape}, expected an integer for each query")
    if queries and not 0 <= excluded.min() <= excluded.max() < database:
        raise ValueError(f"exclude: got {excluded.min()} to {excluded.max()}, expected indices below {database}")
    return excluded

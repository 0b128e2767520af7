"""What the metrics share: checks of a ranking, and averages over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = dict[str, NDArray[np.float64]]
"""Measure -> (queries,)."""


def mean(values: NDArray[np.float64]) -> float:
    """Mean over the queries that are not NaN; NaN if there are none.

    >>> mean(np.array([0.5, np.nan, 1.0]))
    0.75
    """
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def check_ranks(ranks: ArrayLike, queries: int) -> NDArray[Any]:
    """A ranking as an integer matrix (database or less, queries) of indices from 0; ValueError if it is none."""
    ranking = np.asarray(ranks)
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer) or ranking.shape[1] != queries:
        raise ValueError(
            f"ranks: got {ranking.dtype} {ranking.shape}, expected integers (database, queries) with {queries} queries"
        )
    if ranking.min(initial=0) < 0:
        raise ValueError(f"ranks: got {ranking.min()}, expected database indices from 0")
    return ranking


def check_ks(ks: Sequence[int]) -> None:
    if any(k < 1 for k in ks):
        raise ValueError(f"ks: got {tuple(ks)}, expected cut-offs of at least 1")

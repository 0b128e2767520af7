"""How much an approximate index loses against an exact one, and what it gains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from numpy.typing import NDArray

from hamlet.retrieval.faiss_index import blocks, contiguous
from hamlet.retrieval.ids import Ids
from hamlet.retrieval.stores import Store

KS = (1, 10, 100)
# Sums of products in another order differ by this much of the largest.
_TIE = 5e-7


@dataclass(frozen=True)
class Check:
    """What :func:`check_recall` measured.

    Args:
        queries: how many.
        recall: for each k of 1, 10 and 100, the share of the k nearest that is among the first k found, averaged over
            the queries; without those that there are too few descriptors for.
        queries_per_second: of the index, all queries in one call.
        exact_queries_per_second: of the exact search, the same way.
    """

    queries: int
    recall: dict[int, float]
    queries_per_second: float
    exact_queries_per_second: float


def check_recall(store: Store, descriptors: NDArray[Any], ids: Sequence[str], queries: int = 1000) -> Check:
    """Compare an index with exact search, faiss's Flat.

    The queries are a sample of what the index holds, and none of them counts as its own neighbour. What is found counts
    if it is no farther than the k-th nearest, so that copies of one picture may come in any order.

    Args:
        store: the index.
        descriptors: (n, dim), what it was made from; read block by block.
        ids: their ids.
        queries: how many to draw, without repetition.

    Raises:
        ValueError: fewer than two descriptors.

    >>> from hamlet.retrieval import Index
    >>> rows = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
    >>> names = [str(row) for row in range(300)]
    >>> check_recall(Index.build(rows, names), rows, names).recall
    {1: 1.0, 10: 1.0, 100: 1.0}
    """
    if len(descriptors) < 2:
        raise ValueError(f"descriptors: got {len(descriptors)}, expected at least two to compare")
    count = min(queries, len(descriptors))
    rows = np.sort(np.random.default_rng(0).choice(len(descriptors), count, replace=False))
    chosen = contiguous(descriptors[rows])
    k = min(KS[-1] + 1, len(descriptors))
    start = time.perf_counter()
    scores, nearest = knn_ground_truth(chosen, blocks(descriptors), k, faiss.METRIC_INNER_PRODUCT)
    exact_seconds = time.perf_counter() - start
    # What comes with the first search, such as copies on the GPUs and pages of a mapped file, is not the search's time.
    store.search(chosen[:1], k)
    start = time.perf_counter()
    _, found = store.search(chosen, k)
    seconds = time.perf_counter() - start
    recall = np.zeros((count, len(KS)))
    packed = Ids.of(ids)
    for query, row in enumerate(rows):
        others = packed.find(found[query])
        reached = contiguous(descriptors[others[others != row]]) @ chosen[query]
        tie = _TIE * np.abs(scores[query]).max()
        nearest_scores = scores[query][nearest[query] != row]
        for column, at in enumerate(KS):
            if at < k:
                recall[query, column] = (reached[:at] >= nearest_scores[at - 1] - tie).sum() / at
    means = {at: float(mean) for at, mean in zip(KS, recall.mean(axis=0), strict=True) if at < k}
    return Check(count, means, count / seconds, count / exact_seconds)

"""Descriptors made more certain by their neighbours: alpha query expansion and database augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamlet.retrieval.neighbours import blocks, check_matrix, nearest, normalise


def expand_queries(queries: ArrayLike, database: ArrayLike, *, k: int = 10, alpha: float = 3.0) -> NDArray[np.float32]:
    """Alpha query expansion: each query becomes the L2-normalised mean of itself and its k nearest in the database.

    The neighbours weigh their similarity to the power ``alpha``, those with a negative similarity nothing.

    Args:
        queries: floating (queries, dim), L2-normalised.
        database: floating (database, dim), L2-normalised.
        k: how many neighbours; no more than there are count.
        alpha: at least 0; 0 is average query expansion (Chum et al., ICCV 2007).

    Returns:
        float32 (queries, dim).

    Raises:
        ValueError: descriptors that are not finite matrices of one width, k below 1, a negative alpha.

    Source: Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.

    >>> expand_queries([[1.0, 0.0]], [[0.6, 0.8], [0.0, 1.0]], k=1, alpha=1.0).round(3).tolist()
    [[0.9430000185966492, 0.3330000042915344]]
    """
    base = check_matrix("database", database)
    asked = check_matrix("queries", queries, base.shape[1])
    check_settings(k=k, alpha=alpha)
    similarity, rows = nearest(asked, base, k)
    return _mean(asked, similarity, rows, base, alpha)


def augment_database(
    database: ArrayLike, *, k: int = 10, alpha: float = 3.0, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Database augmentation: every descriptor becomes what :func:`expand_queries` makes of it among all others.

    All pairs are compared, so time grows with the square of the database.

    Args:
        database: floating (database, dim), L2-normalised.
        k: how many neighbours beside the descriptor itself.
        alpha: at least 0.
        out: float32 (database, dim), where the result goes, such as an array mapped from a file; default a new one.

    Returns:
        float32 (database, dim).

    Raises:
        ValueError: as :func:`expand_queries`.

    Source: Arandjelović and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012,
    with the weights of Radenović et al., TPAMI 2018.

    >>> augment_database([[1.0, 0.0], [0.0, 1.0]], k=1, alpha=0.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    base = check_matrix("database", database)
    check_settings(k=k, alpha=alpha)
    result = np.empty(base.shape, dtype=np.float32) if out is None else out
    for block in blocks(len(base)):
        similarity, rows = nearest(base[block], base, k + 1)
        similarity, rows = without_itself(similarity, rows, np.arange(len(base))[block])
        result[block] = _mean(base[block], similarity, rows, base, alpha)
    return result


def without_itself(
    similarity: NDArray[np.float32], rows: NDArray[np.int64], itself: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Take each descriptor out of its own neighbours; the last one goes where equal ones kept it from them.

    Args:
        similarity, rows: (n, k), of :func:`hamlet.retrieval.neighbours.nearest`.
        itself: (n,), the row of each descriptor.

    Returns:
        (n, k - 1) of each.
    """
    kept = rows != itself[:, None]
    kept[kept.all(axis=1), -1] = False
    shape = len(rows), rows.shape[1] - 1
    return similarity[kept].reshape(shape), rows[kept].reshape(shape)


def _mean(
    descriptors: NDArray[Any],
    similarity: NDArray[np.float32],
    rows: NDArray[np.int64],
    database: NDArray[Any],
    alpha: float,
) -> NDArray[np.float32]:
    weights = np.where(similarity > 0, np.maximum(similarity, 0) ** alpha, 0)
    result = np.empty(descriptors.shape, dtype=np.float32)
    for block in blocks(len(descriptors), 256):
        # The mean and the sum are the same but for their length, which is made 1.
        result[block] = descriptors[block] + np.einsum("qk,qkd->qd", weights[block], database[rows[block]])
    return normalise(result)


def check_settings(*, k: int, alpha: float) -> None:
    """ValueError unless k is at least 1 and alpha a number of at least 0."""
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha: got {alpha}, expected at least 0 and finite")

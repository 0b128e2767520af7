"""Diffusion: similarity that spreads over the graph of the database's nearest neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import cg

from hamlet.retrieval.expansion import without_itself
from hamlet.retrieval.neighbours import blocks, check_matrix, inner_products, nearest

_POWER = 3
_TOLERANCE, _STEPS = 1e-6, 1000


def neighbour_graph(database: ArrayLike, *, k: int = 50) -> sparse.csr_array:
    """The normalised graph that :func:`diffuse` spreads over.

    Two descriptors are joined where each is among the other's k nearest, with the weight max(similarity, 0) ** 3;
    the weights are divided by the square roots of the sums of both rows. All pairs are compared, so time grows with the
    square of the database.

    Args:
        database: floating (database, dim), L2-normalised.
        k: how many neighbours beside the descriptor itself.

    Returns:
        float64 (database, database), sparse, symmetric, with an empty diagonal.

    Raises:
        ValueError: a database that is no finite matrix, or k below 1.

    Source: Iscen et al., "Efficient Diffusion on Region Manifolds", CVPR 2017.

    >>> neighbour_graph([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]], k=1).toarray().round(3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    base = check_matrix("database", database)
    check_settings(k=k)
    size = len(base)
    width = min(k + 1, size) - 1
    values = np.empty((size, width))
    columns = np.empty((size, width), dtype=np.int32 if size * width < 1 << 31 else np.int64)
    for block in blocks(size):
        similarity, rows = without_itself(*nearest(base[block], base, k + 1), np.arange(size)[block])
        values[block], columns[block] = _kernel(similarity), rows
    starts = np.arange(size + 1, dtype=columns.dtype) * width
    directed = sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(size, size))
    mutual = directed.minimum(directed.T)
    sums = mutual.sum(axis=1)
    scale = sparse.diags_array(np.where(sums > 0, sums, 1) ** -0.5)
    return (scale @ mutual @ scale).tocsr()


def diffuse(
    queries: ArrayLike, database: ArrayLike, graph: sparse.csr_array, *, query_k: int = 10, alpha: float = 0.99
) -> NDArray[np.float32]:
    """Scores of database descriptors for queries by diffusion: the solution f of (I - alpha W) f = q.

    Here q is the kernel max(similarity, 0) ** 3 at the ``query_k`` descriptors nearest to the query, and 0 elsewhere.
    It is solved by conjugate gradients. What no path joins to these descriptors gets its plain similarity less 2, and
    so ranks below all that was reached.

    Args:
        queries: floating (queries, dim), L2-normalised.
        database: floating (database, dim), L2-normalised, from which ``graph`` was made.
        graph: W, of :func:`neighbour_graph`.
        query_k: where the query enters the graph.
        alpha: at least 0 and below 1: how far it spreads.

    Returns:
        float32 (queries, database).

    Raises:
        ValueError: descriptors that are not finite matrices of one width, a graph of another size, ``query_k`` below 1,
            alpha outside [0, 1).
        RuntimeError: conjugate gradients that do not converge.

    Source: Iscen et al., CVPR 2017.

    >>> database = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]])
    >>> diffuse([[0.0, 1.0]], database, neighbour_graph(database, k=1), query_k=1).round(2).tolist()
    [[10.75, 10.850000381469727, -3.0]]
    """
    base = check_matrix("database", database)
    asked = check_matrix("queries", queries, base.shape[1])
    if graph.shape != (len(base), len(base)):
        raise ValueError(f"graph: got shape {graph.shape}, expected one row and column for each of {len(base)}")
    check_settings(query_k=query_k, alpha=alpha)
    system = sparse.eye_array(len(base), format="csr") - alpha * graph
    similarity, rows = nearest(asked, base, query_k)
    scores = inner_products(asked, base) - 2
    for query, entry in enumerate(rows):
        start = np.zeros(len(base))
        start[entry] = _kernel(similarity[query])
        solution, stopped = cg(system, start, rtol=_TOLERANCE, maxiter=_STEPS)
        if stopped:
            raise RuntimeError(f"diffusion: no solution after {_STEPS} steps, expected one; try a smaller alpha")
        # Where nothing came there is exactly 0: sparse products and sums add nothing to it.
        reached = solution != 0
        scores[query, reached] = solution[reached]
    return scores


def check_settings(*, k: int = 1, query_k: int = 1, alpha: float = 0.0) -> None:
    """ValueError unless k and query_k are at least 1, and alpha is at least 0 and below 1."""
    for name, value in {"k": k, "query_k": query_k}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha: got {alpha}, expected at least 0 and below 1")


def _kernel(similarity: NDArray[np.float32]) -> NDArray[np.float64]:
    kernel: NDArray[np.float64] = np.maximum(similarity.astype(np.float64), 0) ** _POWER
    return kernel

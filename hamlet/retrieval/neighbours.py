"""Descriptors and their nearest neighbours: what whitening, expansion and diffusion are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 4096


def check_matrix(name: str, value: ArrayLike, dim: int | None = None) -> NDArray[np.float32]:
    """``value`` as a contiguous float32 (n, dim) array; ValueError if it is not that, or holds NaN or infinity."""
    array = np.asarray(value)
    wanted = "dim" if dim is None else dim
    if array.ndim != 2 or 0 in array.shape or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"{name}: got shape {array.shape}, expected (n, {wanted}) with n at least 1")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name}: got {array.dtype}, expected floating point")
    if not all(np.isfinite(array[rows]).all() for rows in blocks(len(array))):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    return np.ascontiguousarray(array, dtype=np.float32)


def blocks(count: int, size: int | None = None) -> Iterator[slice]:
    """Slices that part ``count`` rows, so that what is computed of them need not all be in memory."""
    size = size or BLOCK
    return (slice(start, start + size) for start in range(0, count, size))


def normalise(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows divided by their L2 norm; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def nearest(
    queries: NDArray[np.float32], database: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k largest inner products of each query: float32 and int64 (queries, min(k, database)), best first."""
    found: tuple[NDArray[np.float32], NDArray[np.int64]] = faiss.knn(
        queries, database, min(k, len(database)), metric=faiss.METRIC_INNER_PRODUCT
    )
    return found

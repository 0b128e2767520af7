"""Descriptors and their nearest neighbours: what whitening, expansion and diffusion are made of.

All of it takes arrays that are mapped from files, of float16 or float32, and reads them block by block: no function
here or in those modules holds a second copy of a database in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 4096
# Of the database, where whole rows of similarities or of neighbours are wanted: 128 MiB of 512 numbers.
_DATABASE_BLOCK = 1 << 16


def check_matrix(name: str, value: ArrayLike, dim: int | None = None) -> NDArray[Any]:
    """``value`` as a float16 or float32 (n, dim) array, itself if it is one.

    Raises:
        ValueError: something else, or NaN or infinity in it.
    """
    array = np.asarray(value)
    wanted = "dim" if dim is None else dim
    if array.ndim != 2 or 0 in array.shape or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"{name}: got shape {array.shape}, expected (n, {wanted}) with n at least 1")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name}: got {array.dtype}, expected floating point")
    if not all(np.isfinite(array[rows]).all() for rows in blocks(len(array))):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
    return array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)


def blocks(count: int, size: int | None = None) -> Iterator[slice]:
    """Slices that part ``count`` rows, so that what is computed of them need not all be in memory."""
    size = size or BLOCK
    return (slice(start, start + size) for start in range(0, count, size))


def single(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows as contiguous float32, themselves if they are that."""
    return np.ascontiguousarray(rows, dtype=np.float32)


def scratch(shape: tuple[int, int], folder: Path | str | None = None, dtype: Any = np.float32) -> NDArray[Any]:
    """An array in a nameless file, which takes disk rather than memory and is gone with the array.

    Args:
        shape: at least one row and column.
        folder: on whose disk; default that for temporary files.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def normalise(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows divided by their L2 norm; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def nearest(queries: NDArray[Any], database: NDArray[Any], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k largest inner products of each query: float32 and int64 (queries, min(k, database)), best first."""
    asked = single(queries)
    best = np.empty((len(asked), 0), dtype=np.float32)
    rows = np.empty((len(asked), 0), dtype=np.int64)
    for block in blocks(len(database), _DATABASE_BLOCK):
        part = single(database[block])
        scores, places = faiss.knn(asked, part, min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        best, rows = np.hstack([best, scores]), np.hstack([rows, places + block.start])
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return best, rows


def inner_products(queries: NDArray[Any], database: NDArray[Any]) -> NDArray[np.float32]:
    """float32 (queries, database)."""
    asked = single(queries)
    result = np.empty((len(asked), len(database)), dtype=np.float32)
    for block in blocks(len(database), _DATABASE_BLOCK):
        result[:, block] = asked @ single(database[block]).T
    return result

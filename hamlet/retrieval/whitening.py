"""Whitening: a projection of descriptors after which all directions vary alike, or those that tell things apart do."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from hamlet.files import replacing
from hamlet.retrieval.neighbours import blocks, check_matrix, normalise

FORMAT = "hamlet-whitening"
VERSION = 2
# Directions whose variance is this much smaller than the largest are what rounding left.
_LEAST = 1e-9


@dataclass(frozen=True)
class Origin:
    """What descriptors were made by, and so what a whitening of them is good for.

    Args:
        model: the model's fingerprint.
        longest_side: see :func:`hamlet.images.load_image`.
        scales: see :func:`hamlet.retrieval.extraction.describe`.
    """

    model: str
    longest_side: int
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Whitening:
    """Subtract a mean, project, and divide by the L2 norm.

    Args:
        mean: float32 (dim,).
        projection: float32 (out, dim).
        origin: of the descriptors that it was learnt from; None if that is not known.

    >>> whitening = Whitening(np.zeros(2, np.float32), np.array([[2, 0], [0, 1]], np.float32))
    >>> whitening(np.array([[3.0, 8.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    origin: Origin | None = None

    def __call__(self, descriptors: ArrayLike, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """float32 (n, out), L2-normalised, of floating (n, dim), put into ``out`` if that is given.

        Raises:
            ValueError: descriptors of another width.
        """
        array = check_matrix("descriptors", descriptors, len(self.mean))
        result = np.empty((len(array), len(self.projection)), dtype=np.float32) if out is None else out
        for block in blocks(len(array)):
            result[block] = normalise((array[block] - self.mean) @ self.projection.T)
        return result

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, atomically."""
        about = json.dumps({"format": FORMAT, "version": VERSION, "origin": self.origin and asdict(self.origin)})
        tensors = {"mean": self.mean, "projection": np.ascontiguousarray(self.projection)}
        with replacing(path) as file:
            file.write(safetensors.numpy.save(tensors, metadata={"hamlet": about}))

    @classmethod
    def load(cls, path: Path | str) -> Whitening:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: a file that is missing, damaged, foreign or of another version.
        """
        expected = "a file that `hamlet whiten` wrote"
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file, expected {expected}")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get("hamlet", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path}: damaged or foreign ({error}), expected {expected}") from error
        arrays = [tensors[name] for name in ("mean", "projection") if name in tensors]
        fits = [array.ndim for array in arrays] == [1, 2] and arrays[0].shape == arrays[1].shape[1:]
        plain = all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
        if not isinstance(about, dict) or about.get("format") != FORMAT or not (fits and plain):
            raise ValueError(f"{path}: not a whitening, expected {expected}")
        if about.get("version") != VERSION:
            raise ValueError(f"{path}: version {about.get('version')}, expected {VERSION}")
        return cls(tensors["mean"], tensors["projection"], _read_origin(about.get("origin")))


def load_whitening(path: Path | str, origin: Origin) -> Whitening:
    """Read a whitening for descriptors of this origin.

    Raises:
        ValueError: as :meth:`Whitening.load`, and for one that was learnt from descriptors made otherwise.
    """
    whitening = Whitening.load(path)
    if whitening.origin is None:
        raise ValueError(f"{path}: does not tell what it was learnt from, expected a file that `hamlet whiten` wrote")
    learnt, wanted = asdict(whitening.origin), asdict(origin)
    if other := [f"{name} {learnt[name]}, not {wanted[name]}" for name in wanted if learnt[name] != wanted[name]]:
        raise ValueError(
            f"{path}: learnt from other descriptors ({'; '.join(other)}), "
            "expected a file that `hamlet whiten` wrote with this model and these settings"
        )
    return whitening


def _read_origin(about: Any) -> Origin | None:
    try:
        return Origin(str(about["model"]), int(about["longest_side"]), tuple(map(float, about["scales"])))
    except (KeyError, TypeError, ValueError):
        return None


def fit_pca(descriptors: ArrayLike, dim: int | None = None, *, origin: Origin | None = None) -> Whitening:
    """PCA whitening: onto the directions of largest variance, each divided by the square root of its variance.

    Args:
        descriptors: floating (n, dim).
        dim: how many directions; default all in which the descriptors vary.
        origin: kept with the result.

    Raises:
        ValueError: descriptors that are no finite matrix, or that vary in fewer directions than ``dim``.

    Source: Jégou and Chum, "Negative evidences and co-occurences in image retrieval", ECCV 2012.

    >>> corners = np.array([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
    >>> np.abs(fit_pca(corners)(corners)).round(3).tolist()[0]
    [0.7070000171661377, 0.7070000171661377]
    """
    array = check_matrix("descriptors", descriptors)
    mean, covariance = _moments(array)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    varied = int((values > _LEAST * values[0]).sum()) if values[0] > 0 else 0
    kept = _check_dim(dim, varied, f"the directions in which {len(array)} descriptors vary")
    projection = (vectors[:, :kept] * values[:kept] ** -0.5).T
    return Whitening(mean.astype(np.float32), projection.astype(np.float32), origin)


def fit_learned(
    descriptors: ArrayLike, pairs: ArrayLike, dim: int | None = None, *, origin: Origin | None = None
) -> Whitening:
    """Learned whitening: what differs between pictures of one thing is made alike in all directions, then PCA.

    With C the covariance of the differences of the pairs and C = L L^T, descriptors are projected by the inverse of L
    and rotated onto the directions of largest variance of all of them.

    Args:
        descriptors: floating (n, dim).
        pairs: int (pairs, 2), rows of descriptors that show the same thing.
        dim: how many directions; default all.
        origin: kept with the result.

    Raises:
        ValueError: descriptors that are no finite matrix, pairs that are no rows of it, or pairs whose differences do
            not span the space: it takes more pairs than dimensions.

    Source: Radenović, Tolias and Chum, TPAMI 2018, §3.4, after Mikolajczyk and Matas, ICCV 2007.

    >>> rows = np.array([[4.0, 0.0], [4.0, 0.2], [-4.0, 0.0], [-2.0, 0.0]])
    >>> differences = fit_learned(rows, [[0, 1], [2, 3]]).projection @ (rows[[1, 3]] - rows[[0, 2]]).T
    >>> np.abs(differences @ differences.T / 2).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    array = check_matrix("descriptors", descriptors)
    chosen = np.asarray(pairs)
    if chosen.ndim != 2 or chosen.shape[1] != 2 or not np.issubdtype(chosen.dtype, np.integer) or not len(chosen):
        raise ValueError(f"pairs: got {chosen.dtype} {chosen.shape}, expected integers (pairs, 2)")
    if not 0 <= chosen.min() <= chosen.max() < len(array):
        raise ValueError(f"pairs: got rows {chosen.min()} to {chosen.max()}, expected rows of {len(array)} descriptors")
    kept = _check_dim(dim, array.shape[1], "the dimensions of the descriptors")
    within = np.zeros((array.shape[1], array.shape[1]))
    for block in blocks(len(chosen)):
        differences = array[chosen[block, 0]].astype(np.float64) - array[chosen[block, 1]]
        within += differences.T @ differences / len(chosen)
    values = np.linalg.eigvalsh(within)
    if not values[0] > _LEAST * values[-1]:
        spanned = int((values > _LEAST * values[-1]).sum()) if values[-1] > 0 else 0
        raise ValueError(
            f"pairs: the differences of {len(chosen)} pairs span {spanned} of {array.shape[1]} dimensions, "
            "expected all; give more pictures, or use PCA whitening"
        )
    inverse = np.linalg.inv(np.linalg.cholesky(within))
    mean, covariance = _moments(array)
    _, vectors = np.linalg.eigh(inverse @ covariance @ inverse.T)
    projection = vectors[:, ::-1][:, :kept].T @ inverse
    return Whitening(mean.astype(np.float32), projection.astype(np.float32), origin)


def pairs_of_classes(labels: Sequence[str]) -> list[tuple[int, int]]:
    """Each picture of a class with the next of its class, and the last with the first.

    >>> pairs_of_classes(["tower", "bridge", "tower", "tower"])
    [(0, 2), (2, 3), (3, 0)]
    """
    classes: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    pairs: list[tuple[int, int]] = []
    for rows in classes.values():
        pairs += itertools.pairwise(rows)
        # Of two pictures the pair is there already.
        pairs += [(rows[-1], rows[0])] if len(rows) > 2 else []
    return pairs


def _moments(array: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance."""
    mean = array.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((array.shape[1], array.shape[1]))
    for block in blocks(len(array)):
        centred = array[block] - mean
        covariance += centred.T @ centred / len(array)
    return mean, covariance


def _check_dim(dim: int | None, most: int, what: str) -> int:
    wanted = most if dim is None else dim
    if not 1 <= wanted <= most:
        raise ValueError(f"dim: got {dim}, expected 1 to {most}, {what}")
    return wanted

"""An index over descriptors: faiss under string ids, in one file that is checked before it is believed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hamlet.files import replacing

MAGIC = b"HAMLETIX"
VERSION = 1
# Magic, version, length of the JSON part, length of the faiss part, SHA-256 of both parts.
_HEADER = struct.Struct("<8sIQQ32s")
_CHUNK = 1 << 20
_TRAINING_ROWS = 262_144


class Index:
    """Inner-product search over descriptors with string ids.

    Descriptors are (n, dim) floating-point arrays or tensors, finite, and L2-normalised where scores are to be cosines.

    >>> index = Index.build(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    >>> scores, ids = index.search(np.array([[0.0, 0.8, 0.6]], dtype=np.float32), k=2)
    >>> ids, scores.round(2).tolist()
    ([['b', 'c']], [[0.800000011920929, 0.6000000238418579]])

    Attributes:
        metadata: plain data kept with the index, such as the model's fingerprint and the images' folder.
        factory: the string that the index was made from.
    """

    def __init__(self, index: Any, ids: Sequence[str], factory: str, metadata: dict[str, Any] | None = None) -> None:
        self._index = index
        self._ids = list(ids)
        self._known = set(self._ids)
        self.factory = factory
        self.metadata: dict[str, Any] = dict(metadata or {})

    @classmethod
    def build(
        cls,
        descriptors: NDArray[Any] | Tensor,
        ids: Sequence[str],
        factory: str = "Flat",
        *,
        metadata: dict[str, Any] | None = None,
    ) -> Index:
        """Make an index, training it where its kind needs that (on at most 262,144 of the descriptors).

        Args:
            descriptors: (n, dim) with n at least 1.
            ids: n different strings.
            factory: what ``faiss.index_factory`` takes: "Flat", "IVF1024,PQ64", "HNSW32", ...
            metadata: kept with the index; must be JSON.

        Raises:
            ValueError: descriptors that are not finite (n, dim) floats, ids that repeat or do not match them in
                number, a factory that faiss does not know or cannot train on so few descriptors.
            TypeError: ids that are not strings.
        """
        array = _check_descriptors(descriptors)
        if len(array) == 0:
            raise ValueError(f"descriptors: got shape {array.shape}, expected at least one row")
        made = _faiss(factory, faiss.index_factory, array.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        inverted = faiss.try_extract_index_ivf(made)
        if inverted is not None:
            # faiss searches one list unless told otherwise, which loses most neighbours.
            inverted.nprobe = math.isqrt(inverted.nlist - 1) + 1
        index = cls(made, [], factory, metadata)
        index._check_new(array, ids)
        if not made.is_trained:
            chosen = array
            if len(array) > _TRAINING_ROWS:
                rows = np.random.default_rng(0).choice(len(array), _TRAINING_ROWS, replace=False)
                chosen = array[np.sort(rows)]
            _faiss(factory, made.train, _contiguous(chosen))
        index.add(array, ids)
        return index

    @property
    def ids(self) -> list[str]:
        """Ids in the order in which they were added."""
        return list(self._ids)

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, descriptors: NDArray[Any] | Tensor, ids: Sequence[str]) -> None:
        """Add descriptors under ids that are not yet there; raises as :meth:`build`, and then changes nothing."""
        array = _check_descriptors(descriptors, self.dim)
        self._check_new(array, ids)
        for start in range(0, len(array), _TRAINING_ROWS):
            block = _contiguous(array[start : start + _TRAINING_ROWS])
            _faiss(self.factory, self._index.add, block)
        self._ids.extend(ids)
        self._known.update(ids)

    def search(self, descriptors: NDArray[Any] | Tensor, k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The k nearest by inner product.

        Args:
            descriptors: (queries, dim).
            k: how many; no more than there are come back.

        Returns:
            scores, float32 (queries, min(k, len)), descending; and for each query its ids. An approximate index may
            find fewer for a query: its ids are then fewer, and the rest of its scores -inf.
        """
        if k < 1:
            raise ValueError(f"k: got {k}, expected at least 1")
        array = _contiguous(_check_descriptors(descriptors, self.dim))
        scores, rows = self._index.search(array, min(k, len(self)))
        scores[rows < 0] = -np.inf
        return scores, [[self._ids[row] for row in found if row >= 0] for found in rows]

    def save(self, path: Path | str) -> None:
        """Write one file, atomically: a killed or failed save leaves what was there.

        Raises:
            TypeError: metadata that is not JSON.
        """
        about = {"factory": self.factory, "dim": self.dim, "ids": self._ids, "metadata": self.metadata}
        text = json.dumps(about).encode()
        with replacing(path) as file:
            file.write(bytes(_HEADER.size))
            digest, length = hashlib.sha256(text), 0
            file.write(text)

            def write(content: bytes) -> None:
                nonlocal length
                digest.update(content)
                length += file.write(content)

            faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _CHUNK))  # type: ignore[attr-defined]
            file.seek(0)
            file.write(_HEADER.pack(MAGIC, VERSION, len(text), length, digest.digest()))

    @classmethod
    def load(cls, path: Path | str) -> Index:
        """Read what :meth:`save` wrote.

        The header's lengths and checksum are verified before faiss sees a byte, so that a truncated, damaged or
        foreign file is refused. A checksum is no signature: load indexes from people whom you trust, as faiss was not
        made for hostile files.

        Raises:
            ValueError: the file is missing, foreign, truncated, damaged, or of another version.
        """
        try:
            with open(path, "rb") as file:
                about = _read_header(file, path)
                index = faiss.read_index(faiss.PyCallbackIOReader(file.read, _CHUNK))  # type: ignore[attr-defined]
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}, expected an index file") from error
        except RuntimeError as error:
            raise ValueError(f"{path}: faiss cannot read it ({_faiss_reason(error)})") from error
        if index.ntotal != len(about["ids"]) or index.d != about["dim"]:
            raise ValueError(
                f"{path}: {index.ntotal} descriptors of {index.d} do not match its {len(about['ids'])} ids"
            )
        return cls(index, about["ids"], about["factory"], about["metadata"])

    def _check_new(self, array: NDArray[Any], ids: Sequence[str]) -> None:
        if len(ids) != len(array):
            raise ValueError(f"ids: got {len(ids)}, expected one for each of the {len(array)} descriptors")
        for id in ids:
            if not isinstance(id, str):
                raise TypeError(f"ids: got {id!r} of type {type(id).__name__}, expected strings")
        repeated = _first_repeated(ids, self._known)
        if repeated is not None:
            raise ValueError(f"ids: {repeated!r} comes twice, expected different ids")


def _first_repeated(ids: Iterable[str], known: set[str]) -> str | None:
    seen: set[str] = set()
    for id in ids:
        if id in known or id in seen:
            return id
        seen.add(id)
    return None


def _read_header(file: BinaryIO, path: Path | str) -> dict[str, Any]:
    """Verify the whole file, parse its JSON part, and leave ``file`` at the start of the faiss part."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path}: not an index of hamlet, expected a file that `Index.save` wrote")
    _, version, text_length, index_length, expected = _HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, expected {VERSION}")
    size = os.fstat(file.fileno()).st_size
    whole = _HEADER.size + text_length + index_length
    if size != whole:
        raise ValueError(f"{path}: {size} bytes, expected {whole}: the file was cut short or has grown")
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    if digest.digest() != expected:
        raise ValueError(f"{path}: checksum does not match, the file is damaged")
    file.seek(_HEADER.size)
    about: dict[str, Any] = json.loads(file.read(text_length))
    return about


def _check_descriptors(descriptors: NDArray[Any] | Tensor, dim: int | None = None) -> NDArray[Any]:
    array = descriptors.detach().float().cpu().numpy() if isinstance(descriptors, Tensor) else np.asarray(descriptors)
    if array.ndim != 2 or array.shape[1] == 0 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"descriptors: got shape {array.shape}, expected (n, {dim if dim is not None else 'dim'})")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"descriptors: got {array.dtype}, expected floating point")
    for start in range(0, len(array), _TRAINING_ROWS):
        finite = np.isfinite(array[start : start + _TRAINING_ROWS]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"descriptors: row {start + int(np.argmin(finite))} holds NaN or infinity, expected finite numbers"
            )
    return array


def _contiguous(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _faiss(factory: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise ValueError(f"factory: got {factory!r}, faiss says: {_faiss_reason(error)}") from error


def _faiss_reason(error: RuntimeError) -> str:
    """What faiss has to say, without the C++ function and file that it puts before it."""
    text = " ".join(str(error).split())
    return re.sub(r"^Error in .*? at \S+:\d+: (Error: )?", "", text)[:300]

"""An index over descriptors: faiss under string ids, in one file that is checked before it is believed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamlet.retrieval import faiss_index
from hamlet.retrieval.gpus import LARGEST_K, on_gpus
from hamlet.retrieval.ids import Ids
from hamlet.retrieval.index_file import Content, read_file, write_faiss_index, write_file


class Index:
    """Inner-product search over descriptors with string ids.

    Descriptors are (n, dim) floating-point arrays or tensors, finite, and L2-normalised where scores are to be cosines.
    Memory-mapped arrays are read block by block, never whole. An index in memory is trained, filled and searched on all
    GPUs that faiss sees, each holding a part of the rows.

    >>> index = Index.build(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    >>> scores, ids = index.search(np.array([[0.0, 0.8, 0.6]], dtype=np.float32), k=2)
    >>> ids, scores.round(2).tolist()
    ([['b', 'c']], [[0.800000011920929, 0.6000000238418579]])
    >>> index.remove(["b"])
    >>> index.search(np.array([[0.0, 0.8, 0.6]], dtype=np.float32), k=1)[1]
    [['c']]

    Attributes:
        metadata: plain data kept with the index, such as the model's fingerprint and the images' folder. Its "nprobe",
            where there is one, is how many inverted lists a search visits unless told otherwise.
        factory: the string that the index was made from.
        memory_mapped: whether it lies in a file, and cannot be changed.
    """

    def __init__(self, content: Content, *, memory_mapped: bool = False) -> None:
        self._index, self._ids, self._stamps = content.faiss_index, content.ids, content.stamps
        self._searched: Any = None
        self._damaged = False
        self.factory: str = content.about["factory"]
        self.metadata: dict[str, Any] = content.about["metadata"]
        self.memory_mapped = memory_mapped
        self._nprobe = faiss_index.default_nprobe(self._index)

    @classmethod
    def build(
        cls,
        descriptors: NDArray[Any] | Tensor,
        ids: Sequence[str],
        factory: str = "Flat",
        *,
        stamps: ArrayLike | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Index:
        """Make an index in memory, training it where its kind needs that (on at most 262,144 of the descriptors).

        Args:
            descriptors: (n, dim) with n at least 1.
            ids: n different strings.
            factory: what ``faiss.index_factory`` takes: "Flat", "IVF1024,PQ64", "HNSW32", ...
            stamps: a number for each id, see :meth:`rows`.
            metadata: kept with the index; must be JSON.

        Raises:
            ValueError: descriptors that are not finite (n, dim) floats, ids that repeat or do not match them in
                number, a factory that faiss does not know or cannot train on so few descriptors.
            TypeError: ids that are not strings.
        """
        array, packed, marks, made = _prepare(descriptors, ids, factory, stamps)
        faiss_index.calling(factory, faiss_index.add, made, array)
        return cls(Content(made, packed, marks, {"factory": factory, "metadata": dict(metadata or {})}))

    @classmethod
    def build_file(
        cls,
        path: Path | str,
        descriptors: NDArray[Any] | Tensor,
        ids: Sequence[str],
        factory: str = "Flat",
        *,
        stamps: ArrayLike | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Index:
        """Make an index in its file, atomically, and open it memory-mapped.

        An index that is exact ("Flat") or made of inverted lists ("IVF...") may be larger than memory: it is written
        from one block of descriptors at a time, and lists take their room on the disk twice while they are put
        together. Other kinds are made in memory first.

        Args and raises as :meth:`build`.
        """
        array, packed, marks, made = _prepare(descriptors, ids, factory, stamps)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lists = path.with_name(f".{path.name}.lists")
        shutil.rmtree(lists, ignore_errors=True)  # A killed build may have left them, and this one need none.
        write = faiss_index.write_beyond_memory(made, array, lists)
        if write is None:
            faiss_index.calling(factory, faiss_index.add, made, array)
            write = write_faiss_index(made)
        about = {"factory": factory, "dim": array.shape[1], "metadata": dict(metadata or {})}
        write_file(path, write, packed, marks, about)
        return cls.load(path, memory_map=True)

    @property
    def ids(self) -> list[str]:
        """Ids in the order in which they were added."""
        return list(self._ids)

    def rows(self) -> tuple[Ids, NDArray[np.int64]]:
        """All ids, in the order in which they were added, and their stamps, int64 (n,).

        A stamp is a number that changes with what an id stands for, such as a picture; 0 where none was given.
        """
        return self._ids, self._stamps

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, descriptors: NDArray[Any] | Tensor, ids: Sequence[str], *, stamps: ArrayLike | None = None) -> None:
        """Add descriptors under ids that are not yet there; raises as :meth:`build`, and then changes nothing.

        Raises:
            ValueError: also for an index that is memory-mapped.
            MemoryError: too little memory; of a kind that cannot remove, the index has then to be loaded again.
        """
        self._check_changeable()
        array = check_descriptors(descriptors, self.dim)
        packed, marks = check_rows(ids, stamps, len(array))
        if (known := np.flatnonzero(self._ids.find(ids) >= 0)).size:
            raise ValueError(f"ids: {ids[known[0]]!r} comes twice, expected ids that the index does not hold yet")
        try:
            faiss_index.calling(self.factory, faiss_index.add, self._index, array)
        except BaseException:
            # Rows without ids, of the blocks before the one that failed.
            self._damaged = not faiss_index.truncate(self._index, len(self))
            raise
        self._ids, self._stamps = self._ids + packed, np.append(self._stamps, marks)
        self._searched = None

    def remove(self, ids: Sequence[str]) -> None:
        """Remove descriptors by their ids.

        Raises:
            ValueError: an id that is not there, a kind of index that cannot remove (HNSW and others), or an index that
                is memory-mapped; then nothing changes.
        """
        self._check_changeable()
        self.check_removable()
        rows = self._ids.find(ids)
        if (unknown := np.flatnonzero(rows < 0)).size:
            raise ValueError(f"ids: got {ids[unknown[0]]!r}, expected ids that the index holds")
        keep = np.ones(len(self), bool)
        keep[rows] = False
        faiss_index.remove(self._index, keep)
        self._ids, self._stamps = self._ids.kept(keep), self._stamps[keep]
        self._searched = None

    def check_removable(self) -> None:
        """Raise ValueError if this kind of index cannot remove."""
        if not faiss_index.can_remove(self._index):
            raise ValueError(f"factory: {self.factory!r} cannot remove; make the index again without what is gone")

    def release(self) -> None:
        """Nothing: the file was let go of when it was read. See :meth:`hamlet.retrieval.milvus.MilvusIndex.release`."""

    def search(
        self, descriptors: NDArray[Any] | Tensor, k: int, *, nprobe: int | None = None
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The k nearest by inner product.

        Args:
            descriptors: (queries, dim).
            k: how many; no more than there are come back.
            nprobe: how many inverted lists to visit, of "IVF..."; more find more, and take longer. Default the
                metadata's, or the square root of how many there are.

        Returns:
            scores, float32 (queries, min(k, len)), descending; and for each query its ids. An approximate index may
            find fewer for a query: its ids are then fewer, and the rest of its scores -inf.

        Raises:
            ValueError: descriptors that are not finite (queries, dim) floats, k below 1, or an nprobe below 1 or for an
                index without lists.
        """
        self._check_whole()
        check_nprobe(nprobe, self._nprobe is not None, self.factory)
        array = faiss_index.contiguous(check_queries(descriptors, self.dim, k))
        k = min(k, len(self))
        if k == 0 or len(array) == 0:
            return np.empty((len(array), k), np.float32), [[] for _ in array]
        if self._searched is None:
            self._searched = self._index if self.memory_mapped else on_gpus(self._index, shard=True)
        searched = self._searched if k <= LARGEST_K else self._index
        if self._nprobe is not None:
            faiss_index.set_nprobe(searched, nprobe or self.metadata.get("nprobe") or self._nprobe)
        scores, rows = searched.search(array, k)
        found = rows >= 0
        scores[~found] = -np.inf
        names = iter(self._ids.take(rows[found]))
        return scores, [list(islice(names, count)) for count in found.sum(1).tolist()]

    def save(self, path: Path | str) -> None:
        """Write one file, atomically: a killed or failed save leaves what was there.

        Raises:
            TypeError: metadata that is not JSON.
        """
        self._check_whole()
        about = {"factory": self.factory, "dim": self.dim, "metadata": self.metadata}
        write_file(path, write_faiss_index(self._index), self._ids, self._stamps, about)

    @classmethod
    def load(cls, path: Path | str, *, memory_map: bool = False) -> Index:
        """Open what :meth:`save` wrote.

        Lengths and checksums are verified before faiss sees a byte, so that a truncated, damaged or foreign file is
        refused. A checksum is no signature: load indexes from people whom you trust, as faiss was not made for hostile
        files.

        Args:
            path: the file.
            memory_map: leave the descriptors in the file, to be read where a search needs them: an index that is larger
                than memory can be searched, and opens at once. Their checksum is then not verified, as that would read
                them all; the lengths, and all else, are. The index cannot be changed.

        Raises:
            ValueError: the file is missing, foreign, truncated, damaged, or of another version.
        """
        return cls(read_file(path, memory_map=memory_map), memory_mapped=memory_map)

    def _check_changeable(self) -> None:
        if self.memory_mapped:
            raise ValueError("the index is memory-mapped, expected one in memory: Index.load(path) without memory_map")
        self._check_whole()

    def _check_whole(self) -> None:
        if self._damaged:
            raise ValueError("the index was damaged by an add that failed, expected one that is loaded again")


def check_descriptors(descriptors: NDArray[Any] | Tensor, dim: int | None = None) -> NDArray[Any]:
    """The array of (n, dim) floats, finite in float32, that an index takes; ValueError for anything else."""
    array = (
        descriptors.detach().float().cpu().numpy() if isinstance(descriptors, Tensor) else np.asanyarray(descriptors)
    )
    if array.ndim != 2 or array.shape[1] == 0 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"descriptors: got shape {array.shape}, expected (n, {dim if dim is not None else 'dim'})")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"descriptors: got {array.dtype}, expected floating point")
    for start in range(0, len(array), faiss_index.BLOCK):
        with np.errstate(over="ignore"):  # What float64 holds may be infinite in float32.
            finite = np.isfinite(array[start : start + faiss_index.BLOCK].astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"descriptors: row {start + int(np.argmin(finite))} holds NaN or infinity, expected numbers that are "
                "finite in float32"
            )
    return array


def check_rows(ids: Sequence[str], stamps: ArrayLike | None, count: int) -> tuple[Ids, NDArray[np.int64]]:
    """The ids packed, and the stamps, of ``count`` rows.

    Raises:
        ValueError: not one of each for every row, or an id that comes twice.
        TypeError: an id that is no string.
    """
    if len(ids) != count:
        raise ValueError(f"ids: got {len(ids)}, expected one for each of the {count} descriptors")
    packed = Ids.of(ids)
    repeated = packed.first_repeated()
    if repeated is not None:
        raise ValueError(f"ids: {repeated!r} comes twice, expected different ids")
    marks = np.zeros(count, np.int64) if stamps is None else np.asarray(stamps, np.int64)
    if marks.shape != (count,):
        raise ValueError(f"stamps: got shape {marks.shape}, expected ({count},)")
    return packed, marks


def check_queries(descriptors: NDArray[Any] | Tensor, dim: int, k: int) -> NDArray[Any]:
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    return check_descriptors(descriptors, dim)


def check_nprobe(nprobe: int | None, lists: bool, factory: str) -> None:
    if nprobe is not None and not lists:
        raise ValueError(f"nprobe: got {nprobe} for an index of {factory!r}, expected one of inverted lists (IVF...)")
    if nprobe is not None and nprobe < 1:
        raise ValueError(f"nprobe: got {nprobe}, expected at least 1")


def _prepare(
    descriptors: NDArray[Any] | Tensor, ids: Sequence[str], factory: str, stamps: ArrayLike | None
) -> tuple[NDArray[Any], Ids, NDArray[np.int64], Any]:
    """What is checked of the rows of a new index, and the index itself, trained and empty."""
    array = check_descriptors(descriptors)
    if len(array) == 0:
        raise ValueError(f"descriptors: got shape {array.shape}, expected at least one row")
    packed, marks = check_rows(ids, stamps, len(array))
    made = faiss_index.make(factory, array.shape[1])
    faiss_index.train(made, factory, array)
    return array, packed, marks, made

"""Making, filling and thinning out faiss indexes whose rows are numbered from 0, and writing those beyond memory."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned
from numpy.typing import NDArray

from hamlet.retrieval.gpus import on_gpus
from hamlet.retrieval.index_file import Write, faiss_reason

BLOCK = 262_144
"""Rows taken at a time, and at most trained on."""


def make(factory: str, dim: int) -> Any:
    """An empty faiss index over inner products; ValueError for what ``faiss.index_factory`` does not take."""
    made = calling(factory, faiss.index_factory, dim, factory, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.try_extract_index_ivf(made)
    if inverted is not None:
        # faiss searches one list unless told otherwise, which loses most neighbours.
        inverted.nprobe = math.isqrt(inverted.nlist - 1) + 1
    return made


def train(made: Any, factory: str, descriptors: NDArray[Any]) -> None:
    """Train an index where its kind needs that, on a sample of at most :data:`BLOCK` rows."""
    if made.is_trained:
        return
    chosen = descriptors
    if len(descriptors) > BLOCK:
        rows = np.random.default_rng(0).choice(len(descriptors), BLOCK, replace=False)
        chosen = descriptors[np.sort(rows)]
    inverted: Any = faiss.try_extract_index_ivf(made)
    if inverted is None:
        calling(factory, made.train, contiguous(chosen))
        return
    # k-means searches its centroids; that is where the time goes, and what GPUs are good at.
    centroids = on_gpus(faiss.IndexFlat(inverted.d, inverted.quantizer.metric_type), shard=False)
    inverted.clustering_index = centroids
    try:
        calling(factory, made.train, contiguous(chosen))
    finally:
        inverted.clustering_index = None


def calling(factory: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call faiss, and tell its errors as a ValueError about the factory."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        raise ValueError(f"factory: got {factory!r}, faiss says: {faiss_reason(error)}") from error


def contiguous(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def blocks(descriptors: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Rows in memory, :data:`BLOCK` at a time."""
    for start in range(0, len(descriptors), BLOCK):
        yield contiguous(descriptors[start : start + BLOCK])


def add(made: Any, descriptors: NDArray[Any]) -> None:
    """Add rows, with the next numbers."""
    lists = _Lists.of(made)
    for block in blocks(descriptors):
        if lists is None:
            made.add(block)
        else:
            lists.add(block, made.ntotal)
            made.ntotal = lists.inverted.ntotal


def can_remove(made: Any) -> bool:
    # Codes for fast scanning that are added after some were removed come out damaged (faiss 1.15).
    if isinstance(_parts(made)[1], faiss.IndexIVFFastScan | faiss.IndexFastScan):
        return False
    try:
        made.remove_ids(np.empty(0, np.int64))
    except RuntimeError:
        return False
    return True


def remove(made: Any, keep: NDArray[np.bool_]) -> None:
    """Remove the rows where ``keep`` is false; the others get the numbers 0 to n - 1 in their order."""
    made.remove_ids(np.flatnonzero(~keep))
    inverted = faiss.try_extract_index_ivf(made)
    if inverted is None:
        return  # The other kinds number their rows by their place.
    numbers = np.cumsum(keep) - 1
    lists: Any = inverted.invlists
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if size:
            rows = faiss.rev_swig_ptr(lists.get_ids(number), size)
            rows[:] = numbers[rows]


def truncate(made: Any, count: int) -> bool:
    """Remove what a failed :func:`add` has left of rows from number ``count`` on; False for kinds that cannot."""
    if not can_remove(made):
        return bool(made.ntotal == count)
    made.remove_ids(faiss.IDSelectorRange(count, np.iinfo(np.int64).max))
    inverted = faiss.try_extract_index_ivf(made)
    for each in (made, inverted):
        if each is not None:
            each.ntotal = count
    return True


def default_nprobe(made: Any) -> int | None:
    """How many lists a search visits; None where there are none."""
    inverted = faiss.try_extract_index_ivf(made)
    return None if inverted is None else int(inverted.nprobe)


def set_nprobe(made: Any, nprobe: int) -> None:
    """Say how many lists searches visit from now on; of an index on GPUs, too."""
    space: Any = getattr(faiss, "GpuParameterSpace", faiss.ParameterSpace)()
    space.set_index_parameter(made, "nprobe", nprobe)


def write_beyond_memory(made: Any, descriptors: NDArray[Any], scratch: Path) -> Callable[[Write], None] | None:
    """What writes a trained index with all ``descriptors`` in it, for :func:`hamlet.retrieval.index_file.write_file`.

    It holds one block in memory at a time. Returns None for kinds that have to be in memory: all but exact ones
    ("Flat") and inverted lists ("IVF..."), with transforms before them or without.

    Args:
        made: trained and empty; not to be used afterwards.
        descriptors: (n, dim), best memory-mapped.
        scratch: folder for the lists while they are put together; what is in it goes, and so does it.
    """
    lists = _Lists.of(made)
    if lists is not None:
        return lambda write: _write_lists(made, lists, descriptors, scratch, write)
    transforms, inner = _parts(made)
    if type(inner) is faiss.IndexFlat or type(inner) is faiss.IndexFlatIP:
        return lambda write: _write_flat(made, transforms, inner, descriptors, write)
    return None


def _parts(made: Any) -> tuple[list[Any], Any]:
    """The transforms that come before an index, and it itself."""
    made = faiss.downcast_index(made)
    if not isinstance(made, faiss.IndexPreTransform):
        return [], made
    chain: Any = made.chain
    return [chain.at(number) for number in range(chain.size())], faiss.downcast_index(made.index)


def _transformed(transforms: list[Any], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    for transform in transforms:
        rows = transform.apply(rows)
    return rows


class _Lists:
    """An index of inverted lists that is filled list by list: all of them but those for fast scanning ("PQ64x4fs")."""

    def __init__(self, transforms: list[Any], inverted: Any) -> None:
        self.transforms, self.inverted = transforms, inverted
        self.quantizer: Any = None

    @classmethod
    def of(cls, made: Any) -> _Lists | None:
        transforms, inner = _parts(made)
        in_lists = isinstance(inner, faiss.IndexIVF)
        if in_lists and isinstance(faiss.downcast_InvertedLists(inner.invlists), faiss.ArrayInvertedLists):
            return cls(transforms, inner)
        return None

    def add(self, block: NDArray[np.float32], first: int) -> None:
        """Add rows numbered from ``first``. Which list each goes to is found on the GPUs, if there are any."""
        if self.quantizer is None:
            self.quantizer = on_gpus(self.inverted.quantizer, shard=False)
        rows = _transformed(self.transforms, block)
        _, lists = self.quantizer.search(rows, 1)
        # Kept by a name: add_preassigned holds no reference to the ids while faiss reads them.
        numbers = np.arange(first, first + len(rows))
        add_preassigned(self.inverted, rows, lists[:, 0].copy(), numbers)


def _write_lists(made: Any, lists: _Lists, descriptors: NDArray[Any], scratch: Path, write: Write) -> None:
    """Fill the lists block by block, each block in a file of its own; then write list after list from all of them.

    faiss writes lists that lie in memory only (``write_InvertedLists``, type "ilar"), so the bytes are put together
    here; it reads and memory-maps them as its own.
    """
    inverted = lists.inverted
    with _emptied(scratch):
        parts: list[Any] = []
        first = 0
        for block in blocks(descriptors):
            lists.add(block, first)
            first += len(block)
            path = str(scratch / str(first))
            faiss.write_index(inverted, path)
            inverted.reset()
            parts.append(faiss.read_index(path, faiss.IO_FLAG_MMAP))
        on_disk = [part.invlists for part in parts]
        made.ntotal = inverted.ntotal = first
        inverted.replace_invlists(None, False)
        empty = faiss.serialize_index(made).tobytes()
        without_lists = b"il00"
        if not empty.endswith(without_lists):
            raise RuntimeError("this version of faiss writes its lists elsewhere than at the end")
        write(empty[: -len(without_lists)])
        count, code_size = inverted.nlist, inverted.code_size
        sizes = [sum(each.list_size(number) for each in on_disk) for number in range(count)]
        write(b"ilar" + struct.pack("<QQ4sQ", count, code_size, b"full", count) + struct.pack(f"<{count}Q", *sizes))
        for number in range(count):
            filled = [(each, each.list_size(number)) for each in on_disk if each.list_size(number)]
            for each, size in filled:
                write(faiss.rev_swig_ptr(each.get_codes(number), size * code_size).data)
            for each, size in filled:
                write(faiss.rev_swig_ptr(each.get_ids(number), size).data)


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """A folder that is empty at first, whatever a killed run left in it, and gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder)


def _write_flat(made: Any, transforms: list[Any], inner: Any, descriptors: NDArray[Any], write: Write) -> None:
    made.ntotal = inner.ntotal = len(descriptors)
    empty = faiss.serialize_index(made).tobytes()
    length = struct.Struct("<Q")
    if not empty.endswith(length.pack(0)):
        raise RuntimeError("this version of faiss writes its vectors elsewhere than at the end")
    write(empty[: -length.size] + length.pack(len(descriptors) * inner.d))
    for block in blocks(descriptors):
        write(_transformed(transforms, block).data)

"""Where an index is kept: in a file of faiss, or in Milvus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamlet.files import check_writable
from hamlet.retrieval import faiss_index
from hamlet.retrieval.ids import Ids
from hamlet.retrieval.index import Index
from hamlet.retrieval.milvus import MilvusIndex
from hamlet.retrieval.milvus_connection import SCHEMES, Address


class Store(Protocol):
    """What :class:`hamlet.retrieval.Index` and :class:`hamlet.retrieval.milvus.MilvusIndex` can both do."""

    metadata: dict[str, Any]
    factory: str

    def __len__(self) -> int: ...

    def rows(self) -> tuple[Ids, NDArray[np.int64]]: ...

    def add(
        self, descriptors: NDArray[Any] | Tensor, ids: Sequence[str], *, stamps: ArrayLike | None = None
    ) -> None: ...

    def remove(self, ids: Sequence[str]) -> None: ...

    def check_removable(self) -> None: ...

    def release(self) -> None: ...

    def search(
        self, descriptors: NDArray[Any] | Tensor, k: int, *, nprobe: int | None = None
    ) -> tuple[NDArray[np.float32], list[list[str]]]: ...


def in_milvus(place: Path | str) -> bool:
    """Whether a place is an address of Milvus; a `pathlib.Path` never is, as it keeps one slash of two."""
    return isinstance(place, str) and place.partition("://")[0] in SCHEMES and "://" in place


def check_place(place: Path | str) -> None:
    """Raise ValueError for an address of Milvus that is none, and a file that cannot be written."""
    if in_milvus(place):
        Address.parse(str(place))
    else:
        check_writable(place)


def check_buildable(place: Path | str, factory: str, dim: int) -> None:
    """Raise what :func:`build_store` would for an index of that kind, of descriptors of that length, at this place."""
    if in_milvus(place):
        MilvusIndex.check_buildable(Address.parse(str(place)), factory)
    else:
        faiss_index.make(factory, dim)


def open_store(place: Path | str, *, memory_map: bool = False) -> Store:
    """Open an index; see :meth:`Index.load` and :meth:`MilvusIndex.open`."""
    if in_milvus(place):
        if memory_map:
            raise ValueError(f"memory_map: got it with {place}, expected the file of an index")
        return MilvusIndex.open(Address.parse(str(place)))
    return Index.load(place, memory_map=memory_map)


def build_store(place: Path | str, descriptors: NDArray[Any] | Tensor, ids: Sequence[str], **settings: Any) -> Store:
    """Make an index where none is, or in the place of the one that is; see :meth:`Index.build_file`."""
    if in_milvus(place):
        return MilvusIndex.build(Address.parse(str(place)), descriptors, ids, **settings)
    return Index.build_file(place, descriptors, ids, **settings)


def save_store(store: Store, place: Path | str) -> None:
    """Keep what has changed; what lies in Milvus is kept already."""
    if isinstance(store, Index):
        store.save(place)


def beside(place: Path | str, suffix: str) -> Path:
    """The file or folder of that suffix that belongs to an index; of a server's collection, in the working folder.

    There its name tells the server too, as two may have collections of one name.

    >>> beside("milvus://photos.db", ".model.pt"), beside("milvus://10.0.0.5:19530/photos", ".model.pt")
    (PosixPath('photos.db.model.pt'), PosixPath('photos-4be57a5d.model.pt'))
    """
    path = Path(place)
    if in_milvus(place):
        address = Address.parse(str(place))
        server = hashlib.sha256(address.uri.encode()).hexdigest()[:8]
        path = Path(address.uri if address.local else f"{address.collection}-{server}")
    return path.with_name(f"{path.name}{suffix}")

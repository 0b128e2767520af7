"""An index kept in Milvus, through pymilvus."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hamlet.retrieval.ids import Ids
from hamlet.retrieval.index import check_descriptors, check_nprobe, check_queries, check_rows
from hamlet.retrieval.milvus_connection import Address, connect, disconnect, telling

LARGEST_K = 16_384
"""How many neighbours Milvus finds for a query at most."""

_PROPERTY = "hamlet"
# Bytes of a key; Milvus takes no more.
_LONGEST_KEY = 65_535
# Rows that go into one message: Milvus takes 64 MB.
_BATCH = 1000
# Milvus's kinds that have a faiss factory's name.
_KINDS = (
    (r"Flat", "FLAT", ()),
    (r"HNSW(\d+)(?:,Flat)?", "HNSW", ("M",)),
    (r"IVF(\d+),Flat", "IVF_FLAT", ("nlist",)),
    (r"IVF(\d+),SQ8", "IVF_SQ8", ("nlist",)),
)


class MilvusIndex:
    """Inner-product search over descriptors with string ids, as :class:`hamlet.retrieval.Index`, kept in Milvus.

    Of "Flat" the answers are those of faiss; "HNSW32", "IVF1024,Flat" and "IVF1024,SQ8" become Milvus's indexes of such
    kinds. Every change is there for the next search at once. A server's user and password, or token, are read from the
    environment's MILVUS_TOKEN.

    Attributes:
        metadata, factory: as those of :class:`hamlet.retrieval.Index`.
    """

    def __init__(self, address: Address, client: Any, about: dict[str, Any]) -> None:
        self.address, self._connected, self._about = address, client, about
        self.dim: int = about["dim"]
        self.factory: str = about["factory"]
        self.metadata: dict[str, Any] = about["metadata"]

    @classmethod
    def build(
        cls,
        address: Address,
        descriptors: NDArray[Any] | Tensor,
        ids: Sequence[str],
        factory: str = "Flat",
        *,
        stamps: ArrayLike | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> MilvusIndex:
        """Make a collection beside the one at the address, and put it in its place when it is whole.

        Args and raises as :meth:`hamlet.retrieval.Index.build`.

        Raises:
            ValueError: also where Milvus cannot be reached, or refuses, or holds collections of these names that were
                not made for this address.
            ImportError: without pymilvus.
        """
        array = check_descriptors(descriptors)
        if len(array) == 0:
            raise ValueError(f"descriptors: got shape {array.shape}, expected at least one row")
        _, marks = check_rows(ids, stamps, len(array))
        _check_keys(ids)
        kind, parameters = kind_of(factory)
        about = {
            "collection": address.collection,
            "dim": array.shape[1],
            "factory": factory,
            "metadata": dict(metadata or {}),
        }
        beside = _beside(address)
        with telling(address):
            client = connect(address)
            _check_ours(client, address)
            client.drop_collection(beside.collection)
            _create(client, beside.collection, kind, parameters, about)
            cls(beside, client, about)._insert(array, ids, marks)
            client.flush(beside.collection)
            client.drop_collection(address.collection)
            client.rename_collection(beside.collection, address.collection)
            return cls(address, client, _load(client, address))

    @staticmethod
    def check_buildable(address: Address, factory: str) -> None:
        """Raise ValueError where :meth:`build` would, whatever the descriptors."""
        kind_of(factory)
        with telling(address):
            client = connect(address)
            _check_ours(client, address)
            disconnect(client, address)

    @classmethod
    def open(cls, address: Address) -> MilvusIndex:
        """Open a collection that :meth:`build` made; ValueError if there is none, ImportError without pymilvus."""
        if address.local and not Path(address.uri).exists():
            raise ValueError(f"{address}: no such folder, expected one that `hamlet index --store` made")
        with telling(address):
            client = connect(address)
            return cls(address, client, _load(client, address))

    def release(self) -> None:
        """Let go of Milvus until the next call.

        Milvus Lite lets one process in, and so do processes that are forked from it, as they inherit its lock; its
        threads would not outlive the fork.
        """
        if self._connected is not None:
            disconnect(self._connected, self.address)
            self._connected = None

    @property
    def _client(self) -> Any:
        if self._connected is None:
            client = connect(self.address)
            if _load(client, self.address) != self._about:
                raise ValueError(f"{self.address}: was made again meanwhile, expected what it was; begin again")
            self._connected = client
        return self._connected

    def __len__(self) -> int:
        with telling(self.address):
            rows = self._client.query(self.address.collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def rows(self) -> tuple[Ids, NDArray[np.int64]]:
        """All ids, in no order, and their stamps."""
        ids: list[str] = []
        stamps: list[int] = []
        with telling(self.address):
            rows = self._client.query_iterator(
                self.address.collection, batch_size=_BATCH, filter="", output_fields=["id", "stamp"]
            )
            while batch := rows.next():
                ids += [_name(row["id"]) for row in batch]
                stamps += [row["stamp"] for row in batch]
            rows.close()
        return Ids.of(ids), np.array(stamps, np.int64)

    def add(self, descriptors: NDArray[Any] | Tensor, ids: Sequence[str], *, stamps: ArrayLike | None = None) -> None:
        """As :meth:`hamlet.retrieval.Index.add`; where Milvus fails midway, what it has taken is removed again.

        Raises:
            ValueError: also for an id of more than 65,535 bytes, as Milvus keeps it.
        """
        array = check_descriptors(descriptors, self.dim)
        _, marks = check_rows(ids, stamps, len(array))
        _check_keys(ids)
        with telling(self.address):
            for batch in _batches(ids):
                if held := self._held(batch):
                    raise ValueError(f"ids: {held[0]!r} comes twice, expected ids that the index does not hold yet")
            with self._undoing(lambda: self._delete(ids)):
                self._insert(array, ids, marks)

    def remove(self, ids: Sequence[str]) -> None:
        """As :meth:`hamlet.retrieval.Index.remove`; every kind can. Where Milvus fails midway, they are put back.

        Until then they are kept in memory: 4 bytes a number of their descriptors.
        """
        with telling(self.address):
            for batch in _batches(ids):
                if unknown := set(batch) - set(self._held(batch)):
                    raise ValueError(f"ids: got {min(unknown)!r}, expected ids that the index holds")
            removed: list[dict[str, Any]] = []
            with self._undoing(lambda: self._put_back(removed)):
                for batch in _batches(ids):
                    removed += self._rows(batch)
                    self._delete(batch)

    def check_removable(self) -> None:
        """Every kind can remove."""

    def search(
        self, descriptors: NDArray[Any] | Tensor, k: int, *, nprobe: int | None = None
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        """As :meth:`hamlet.retrieval.Index.search`; k at most 16,384."""
        check_nprobe(nprobe, "nlist" in kind_of(self.factory)[1], self.factory)
        array = check_queries(descriptors, self.dim, k)
        if k > LARGEST_K:
            raise ValueError(f"k: got {k}, expected at most {LARGEST_K}, which is Milvus's limit")
        scores = np.full((len(array), min(k, len(self))), -np.inf, np.float32)
        ids: list[list[str]] = []
        with telling(self.address):
            for start in range(0, len(array), _BATCH):
                batch = np.ascontiguousarray(array[start : start + _BATCH], np.float32)
                found = self._client.search(
                    self.address.collection,
                    batch,
                    anns_field="descriptor",
                    limit=k,
                    output_fields=["id"],
                    search_params={"metric_type": "IP", "params": self._effort(k, nprobe)},
                )
                for query, hits in enumerate(found, start):
                    scores[query, : len(hits)] = [hit["distance"] for hit in hits]
                    ids.append([_name(hit["id"]) for hit in hits])
        return scores, ids

    def _effort(self, k: int, nprobe: int | None) -> dict[str, int]:
        kind, parameters = kind_of(self.factory)
        if kind == "HNSW":
            return {"ef": max(64, k)}
        if "nlist" not in parameters:
            return {}
        lists = parameters["nlist"]
        return {"nprobe": min(lists, nprobe or self.metadata.get("nprobe") or math.isqrt(lists - 1) + 1)}

    def _insert(self, array: NDArray[Any], ids: Sequence[str], stamps: NDArray[np.int64]) -> None:
        for start in range(0, len(array), _BATCH):
            batch = np.ascontiguousarray(array[start : start + _BATCH], np.float32)
            rows = [
                {"id": _key(ids[row]), "stamp": int(stamps[row]), "descriptor": descriptor}
                for row, descriptor in enumerate(batch, start)
            ]
            self._client.insert(self.address.collection, rows)

    def _put_back(self, rows: Sequence[dict[str, Any]]) -> None:
        # Those of the batch that failed may be there still.
        for start in range(0, len(rows), _BATCH):
            self._client.upsert(self.address.collection, list(rows[start : start + _BATCH]))

    def _delete(self, ids: Sequence[str]) -> None:
        for batch in _batches(ids):
            self._client.delete(self.address.collection, ids=[_key(id) for id in batch])

    @contextmanager
    def _undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """Undo what the block has done before it failed; what went wrong first is what is raised."""
        try:
            yield
        except BaseException:
            try:
                undo()
            except Exception:
                warnings.warn(
                    f"{self.address}: a change that failed midway could not be undone; bring the index up to date with "
                    "`hamlet index --update`",
                    stacklevel=5,
                )
            raise

    def _held(self, ids: Sequence[str]) -> list[str]:
        rows = self._client.get(self.address.collection, ids=[_key(id) for id in ids], output_fields=["id"])
        return sorted(_name(row["id"]) for row in rows)

    def _rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """All that Milvus keeps of up to a batch of ids."""
        rows = self._client.get(
            self.address.collection, ids=[_key(id) for id in ids], output_fields=["id", "stamp", "descriptor"]
        )
        return [{**row, "descriptor": np.array(row["descriptor"], np.float32)} for row in rows]


def _load(client: Any, address: Address) -> dict[str, Any]:
    """Make a collection ready for searches; what is known of it."""
    if not client.has_collection(address.collection):
        raise ValueError(f"{address}: no collection {address.collection}; make it with `hamlet index --store`")
    about = _about(client, address.collection)
    if about is None:
        raise ValueError(f"{address}: a collection of something else, expected one of `hamlet index --store`")
    client.load_collection(address.collection)
    return about


def _beside(address: Address) -> Address:
    """Where a collection is built that is to come to an address."""
    return Address(address.uri, f"{address.collection}_building")


def _check_ours(client: Any, address: Address) -> None:
    """Raise ValueError for collections that a build drops and that none for this address has left."""
    for collection in (address.collection, _beside(address).collection):
        if client.has_collection(collection):
            about = _about(client, collection)
            if about is None or about["collection"] != address.collection:
                raise ValueError(f"{address}: the collection {collection} is of something else; name another address")


def _about(client: Any, collection: str) -> dict[str, Any] | None:
    """What a build has written down of a collection; None for one of something else."""
    try:
        about = json.loads(client.describe_collection(collection)["properties"].get(_PROPERTY, ""))
    except json.JSONDecodeError:
        return None
    kinds = {"collection": str, "dim": int, "factory": str, "metadata": dict}
    known = isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in kinds.items())
    return about if known else None


def _create(client: Any, collection: str, kind: str, parameters: dict[str, int], about: dict[str, Any]) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_LONGEST_KEY)
    schema.add_field("stamp", DataType.INT64)
    schema.add_field("descriptor", DataType.FLOAT_VECTOR, dim=about["dim"])
    indexes = client.prepare_index_params()
    indexes.add_index("descriptor", index_type=kind, metric_type="IP", params=parameters)
    client.create_collection(
        collection,
        schema=schema,
        index_params=indexes,
        consistency_level="Strong",
        properties={_PROPERTY: json.dumps(about)},
    )


def kind_of(factory: str) -> tuple[str, dict[str, int]]:
    """Milvus's name and parameters of a faiss factory's kind; ValueError for one that Milvus does not have."""
    for pattern, kind, names in _KINDS:
        if match := re.fullmatch(pattern, factory):
            parameters = dict(zip(names, map(int, match.groups()), strict=True))
            return kind, {**parameters, "efConstruction": 200} if kind == "HNSW" else parameters
    raise ValueError(
        f"factory: got {factory!r}, expected Flat, HNSW32, IVF1024,Flat or IVF1024,SQ8 (any number) in Milvus"
    )


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH))


def _check_keys(ids: Sequence[str]) -> None:
    for id in ids:
        if len(key := _key(id)) > _LONGEST_KEY:
            raise ValueError(f"ids: {id[:40]!r}... takes {len(key)} bytes in Milvus, expected at most {_LONGEST_KEY}")


def _key(id: str) -> str:
    """An id as Milvus keeps it: names are any bytes, keys are text that pymilvus puts between quotes unescaped."""
    return urllib.parse.quote(id, safe="/ ()[]{}!@#$&*+,;:=<>?^`|~", errors="surrogatepass")


def _name(key: str) -> str:
    return urllib.parse.unquote(key, errors="surrogatepass")

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from hamlet.retrieval import Index, faiss_index
from hamlet.retrieval.faiss_index import add, make, remove, train, write_beyond_memory

BEYOND = ["Flat", "L2norm,Flat", "IVF4,Flat", "IVF4,PQ8x4", "OPQ8,IVF4,PQ8x4", "IVF4,SQ8", "IVF40,Flat"]
DIM = 16


def descriptors(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)


def trained(factory: str, rows: NDArray[np.float32]) -> bytes:
    made = make(factory, DIM)
    train(made, factory, rows)
    return faiss.serialize_index(made).tobytes()


def opened(content: bytes) -> Any:
    return faiss.deserialize_index(np.frombuffer(content, np.uint8))


@pytest.mark.parametrize("factory", BEYOND)
def test_what_is_written_block_by_block_is_what_faiss_writes(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = descriptors(1777)
    empty = trained(factory, rows)
    plain = opened(empty)
    plain.add(rows)
    monkeypatch.setattr(faiss_index, "BLOCK", 500)
    write = write_beyond_memory(opened(empty), rows, tmp_path / "scratch")
    assert write is not None
    written = bytearray()
    write(written.extend)
    assert written == faiss.serialize_index(plain).tobytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factory", ["HNSW8", "SQ8", "IVF4,PQ8x4fs", "IVF4,Flat,RFlat"])
def test_other_kinds_have_to_be_in_memory(factory: str, tmp_path: Path) -> None:
    rows = descriptors(200)
    assert write_beyond_memory(opened(trained(factory, rows)), rows, tmp_path / "scratch") is None
    Index.build_file(tmp_path / "a.index", rows, [str(row) for row in range(200)], factory)
    assert len(Index.load(tmp_path / "a.index")) == 200


@pytest.mark.parametrize("factory", [*BEYOND, "SQ8", "PQ8x4"])
def test_removing_is_as_never_having_added(factory: str) -> None:
    rows = descriptors(640)
    empty = trained(factory, rows)
    thinned, never = opened(empty), opened(empty)
    keep = np.random.default_rng(1).random(len(rows)) < 0.4
    add(thinned, rows)
    remove(thinned, keep)
    add(thinned, rows[:7])
    add(never, np.concatenate([rows[keep], rows[:7]]))
    scores, numbers = thinned.search(rows[:50], 5)
    expected, expected_numbers = never.search(rows[:50], 5)
    assert np.array_equal(numbers, expected_numbers)
    assert np.allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,PQ8x4fs", "PQ8x4fs", "IVF4,Flat,RFlat"])
def test_kinds_that_cannot_remove(factory: str) -> None:
    assert not faiss_index.can_remove(opened(trained(factory, descriptors(200))))


def test_a_memory_mapped_array_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", descriptors(4000))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    monkeypatch.setattr(faiss_index, "BLOCK", 300)
    copied = []

    def contiguous(array: NDArray[Any]) -> NDArray[np.float32]:
        copied.append(len(array))
        return np.ascontiguousarray(array, np.float32)

    monkeypatch.setattr(faiss_index, "contiguous", contiguous)
    Index.build_file(tmp_path / "a.index", mapped, [str(row) for row in range(4000)], "IVF4,SQ8")
    assert max(copied) == 300
    assert sum(copied) == 4000 + 300  # and the training sample


class Gpus:
    """Stands in for faiss on two GPUs: what it is asked to copy, and copies that are the originals."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: str | None = None) -> None:
        self.asked: list[tuple[str, bool]] = []
        self.error = error
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", self.copy)

    def copy(self, index: Any, co: Any) -> Any:
        self.asked.append((type(faiss.downcast_index(index)).__name__, co.shard))
        if self.error:
            raise RuntimeError(self.error)
        return index


def test_gpus_train_assign_and_search_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of faiss; whether GPUs do it has not been tried, as there were none."""
    gpus = Gpus(monkeypatch)
    rows = descriptors(400)
    index = Index.build(rows, [str(row) for row in range(400)], "IVF4,Flat")
    index.search(rows[:3], 2)
    index.search(rows[:3], 2)
    replicated = [kind for kind, shard in gpus.asked if not shard]
    assert set(replicated) <= {"IndexFlat", "IndexFlatIP"}
    assert len(replicated) == 2
    assert [kind for kind, shard in gpus.asked if shard] == ["IndexIVFFlat"]
    index.remove(["0"])
    index.search(rows[:3], 2)
    assert len([kind for kind, shard in gpus.asked if shard]) == 2


def test_what_gpus_do_not_take_stays_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Gpus(monkeypatch, error="This index type is not implemented on GPU.")
    rows = descriptors(50)
    with caplog.at_level(logging.WARNING):
        _, ids = Index.build(rows, [str(row) for row in range(50)], "HNSW8").search(rows[:1], 1)
    assert len(ids[0]) == 1
    assert "stays on the CPU: This index type is not implemented" in caplog.text

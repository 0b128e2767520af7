from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hamlet.files import replacing
from hamlet.retrieval import Index, faiss_index
from hamlet.retrieval.index_file import _END, _FOOTER, _PARTS, MAGIC


def descriptors(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def names(count: int, start: int = 0) -> list[str]:
    return [f"photos/{number}.jpg" for number in range(start, start + count)]


def test_flat_is_exact() -> None:
    database, queries = descriptors(200), descriptors(5, seed=1)
    scores, ids = Index.build(database, names(200)).search(queries, 10)
    similarity = queries @ database.T
    expected = np.argsort(-similarity, axis=1)[:, :10]
    assert ids == [[f"photos/{row}.jpg" for row in found] for found in expected]
    assert scores.dtype == np.float32
    assert np.allclose(scores, np.take_along_axis(similarity, expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8", "SQ8", "PCA15,Flat", "IVF2,PQ8x4"])
def test_other_kinds_find_what_they_hold(factory: str) -> None:
    database = descriptors(320)
    index = Index.build(database, names(320), factory)
    _, ids = index.search(database, 1)
    found = sum(row == [name] for row, name in zip(ids, index.ids, strict=True))
    assert found >= 0.9 * len(index)


def test_k_beyond_the_index() -> None:
    index = Index.build(descriptors(3), names(3))
    scores, ids = index.search(descriptors(2, seed=1), 100)
    assert scores.shape == (2, 3)
    assert [sorted(row) for row in ids] == [names(3)] * 2


def test_approximate_index_that_finds_fewer() -> None:
    index = Index.build(descriptors(320), names(320), "IVF8,Flat")
    scores, ids = index.search(descriptors(4, seed=1), 320)
    for row, found in zip(scores, ids, strict=True):
        assert 0 < len(found) < 320
        assert np.isfinite(row[: len(found)]).all()
        assert np.isneginf(row[len(found) :]).all()


def test_add(tmp_path: Path) -> None:
    index = Index.build(descriptors(3), names(3))
    more = torch.from_numpy(descriptors(2, seed=1))
    index.add(more, names(2, start=3))
    assert index.ids == names(5)
    assert len(index) == 5
    assert index.search(more, 1)[1] == [["photos/3.jpg"], ["photos/4.jpg"]]
    for repeated in (["new.jpg", "photos/1.jpg"], ["new.jpg", "new.jpg"]):
        with pytest.raises(ValueError, match="comes twice"):
            index.add(more, repeated)
    assert index.ids == names(5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    rows = torch.eye(4, dtype=dtype)
    assert Index.build(rows, names(4)).search(rows[2:3], 1)[1] == [["photos/2.jpg"]]


def test_survives_saving(tmp_path: Path) -> None:
    database = descriptors(64)
    index = Index.build(database, names(64), "HNSW8", metadata={"model": "hamlet_resnet18", "longest_side": 512})
    index.save(tmp_path / "folder" / "a.index")
    again = Index.load(tmp_path / "folder" / "a.index")
    assert (again.ids, again.dim, again.factory) == (names(64), 16, "HNSW8")
    assert again.metadata == {"model": "hamlet_resnet18", "longest_side": 512}
    assert again.search(database, 3)[1] == index.search(database, 3)[1]
    again.add(descriptors(1, seed=9), ["new.jpg"])
    assert len(again) == 65
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.index"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    index = Index.build(descriptors(4), names(4))
    index.save(tmp_path / "a.index")
    before = (tmp_path / "a.index").read_bytes()
    index.metadata["model"] = object()
    with pytest.raises(TypeError, match="JSON"):
        index.save(tmp_path / "a.index")
    assert (tmp_path / "a.index").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    Index.build(descriptors(4), names(4)).save(tmp_path / "a.index")
    content = (tmp_path / "a.index").read_bytes()
    for length in {*range(0, len(content), 7), len(content) - 1}:
        (tmp_path / "b.index").write_bytes(content[:length])
        for memory_map in (False, True):
            with pytest.raises(ValueError, match=r"b\.index: ") as caught:
                Index.load(tmp_path / "b.index", memory_map=memory_map)
            assert "\n" not in str(caught.value)


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    Index.build(descriptors(2, dim=4), names(2)).save(tmp_path / "a.index")
    content = bytearray((tmp_path / "a.index").read_bytes())
    for place in range(len(content)):
        content[place] ^= 0x40
        (tmp_path / "b.index").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.index: "):
            Index.load(tmp_path / "b.index")
        content[place] ^= 0x40


def sealed(faiss_bytes: bytes, description: bytes, letters: int, text: int, rows: int) -> bytes:
    """A file whose checksums hold, whatever its parts are."""
    described = description + _PARTS.pack(len(faiss_bytes), letters, text, rows, hashlib.sha256(faiss_bytes).digest())
    return faiss_bytes + described + _END.pack(hashlib.sha256(described).digest(), 2, MAGIC)


ABOUT = b'{"dim": 1, "factory": "Flat", "metadata": {}}'
FOREIGN = {
    "empty": (b"", "not an index"),
    "text": (
        b"hello, this is a long text, as long as the footer of an index file is, and then some more " * 2,
        "not an",
    ),
    "faiss alone": (b"IxFI" + bytes(200), "not an index"),
    "newer version": (_PARTS.pack(0, 0, 0, 0, bytes(32)) + _END.pack(bytes(32), 3, MAGIC), "version 3, expected 2"),
    "enormous lengths": (
        _PARTS.pack(2**63, 2**63, 2**63, 2**63, bytes(32)) + _END.pack(bytes(32), 2, MAGIC),
        "expected",
    ),
    "not faiss": (sealed(b"garbage!", ABOUT, 0, len(ABOUT), 0), "faiss cannot read"),
}


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused(kind: str, memory_map: bool, tmp_path: Path) -> None:
    content, message = FOREIGN[kind]
    (tmp_path / "a.index").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Index.load(tmp_path / "a.index", memory_map=memory_map)
    assert "\n" not in str(caught.value)


def test_ids_that_do_not_match_the_faiss_part(tmp_path: Path) -> None:
    Index.build(np.ones((2, 1), np.float32), names(2)).save(tmp_path / "a.index")
    content = (tmp_path / "a.index").read_bytes()
    faiss_length, *_ = _PARTS.unpack(content[-_FOOTER:][: _PARTS.size])
    description = np.array([1, 0], "<i8").tobytes() + b"a" + ABOUT
    (tmp_path / "b.index").write_bytes(sealed(content[:faiss_length], description, 1, len(ABOUT), 1))
    with pytest.raises(ValueError, match="do not match its 1 ids"):
        Index.load(tmp_path / "b.index")


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ValueError, match="expected an index file"):
            Index.load(path)


ONE = np.ones((1, 4), np.float32)
BAD = {
    "one axis": (np.ones(4, np.float32), ["a"], "Flat", r"shape \(4,\)"),
    "integers": (np.ones((1, 4), int), ["a"], "Flat", "int64, expected floating"),
    "not a number": (np.array([[1.0, 0], [np.nan, 0]]), ["a", "b"], "Flat", "row 1 holds NaN"),
    "infinite in float32": (np.array([[1e39, 0]]), ["a"], "Flat", "row 0 holds NaN or infinity.*float32"),
    "infinity": (np.array([[np.inf, 0]]), ["a"], "Flat", "row 0 holds NaN or infinity"),
    "nothing": (np.ones((0, 4), np.float32), [], "Flat", "at least one row"),
    "too few ids": (ONE, [], "Flat", "ids: got 0"),
    "repeated id": (np.ones((2, 4), np.float32), ["a", "a"], "Flat", "'a' comes twice"),
    "unknown factory": (ONE, ["a"], "Nonsense", "factory: got 'Nonsense', faiss says: could not parse"),
    "too few to train": (ONE, ["a"], "IVF8,Flat", "factory: got 'IVF8,Flat'.*training points"),
    "a factory with its own ids": (ONE, ["a"], "IDMap,Flat", "factory: got 'IDMap,Flat'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind: str) -> None:
    rows, ids, factory, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as caught:
        Index.build(rows, ids, factory)
    assert "\n" not in str(caught.value)


def test_bad_search_and_ids() -> None:
    index = Index.build(descriptors(2), names(2))
    with pytest.raises(ValueError, match="k: got 0"):
        index.search(descriptors(1), 0)
    with pytest.raises(ValueError, match=r"shape \(1, 8\), expected \(n, 16\)"):
        index.search(descriptors(1, dim=8), 1)
    with pytest.raises(TypeError, match="got 7 of type int"):
        index.add(descriptors(1), [7])  # type: ignore[list-item]


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQ8", "OPQ8,IVF4,PQ8x4", "HNSW8", "SQ8", "IVF4,PQ8x4fs"])
def test_memory_mapped(factory: str, tmp_path: Path) -> None:
    database, queries = descriptors(320), descriptors(6, seed=1)
    index = Index.build_file(tmp_path / "a.index", database, names(320), factory, metadata={"a": 1})
    assert index.memory_mapped
    whole = Index.load(tmp_path / "a.index")
    (tmp_path / "a.index").unlink()
    scores, ids = index.search(queries, 9)
    expected, expected_ids = whole.search(queries, 9)
    assert ids == expected_ids
    assert np.array_equal(scores, expected)
    assert (index.metadata, index.factory, len(index)) == ({"a": 1}, factory, 320)
    for change in (lambda: index.add(database[:1], ["new"]), lambda: index.remove(names(1))):
        with pytest.raises(ValueError, match="memory-mapped, expected one in memory"):
            change()


def test_a_memory_mapped_index_notices_damage_outside_the_codes(tmp_path: Path) -> None:
    Index.build(descriptors(2, dim=4), names(2)).save(tmp_path / "a.index")
    content = bytearray((tmp_path / "a.index").read_bytes())
    faiss_length, *_ = _PARTS.unpack(content[-_FOOTER:][: _PARTS.size])
    for place in range(faiss_length, len(content)):
        content[place] ^= 0x40
        (tmp_path / "b.index").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.index: "):
            Index.load(tmp_path / "b.index", memory_map=True)
        content[place] ^= 0x40


def test_remove() -> None:
    database = descriptors(6)
    for factory in ("Flat", "IVF2,Flat"):
        index = Index.build(database, names(6), factory, stamps=range(6))
        index.remove(["photos/4.jpg", "photos/0.jpg"])
        assert index.ids == [f"photos/{row}.jpg" for row in (1, 2, 3, 5)]
        assert index.rows()[1].tolist() == [1, 2, 3, 5]
        assert index.search(database[5:], 1)[1] == [["photos/5.jpg"]]
        with pytest.raises(ValueError, match=r"got 'photos/0.jpg', expected ids that the index holds"):
            index.remove(["photos/1.jpg", "photos/0.jpg"])
        assert len(index) == 4
        index.add(database[:1], ["photos/0.jpg"])
        assert index.search(database[:1], 1)[1] == [["photos/0.jpg"]]
        index.remove(index.ids)
        scores, ids = index.search(database[:2], 3)
        assert (scores.shape, ids) == ((2, 0), [[], []])


def test_a_kind_that_cannot_remove_says_so() -> None:
    index = Index.build(descriptors(6), names(6), "HNSW8")
    with pytest.raises(ValueError, match="'HNSW8' cannot remove; make the index again"):
        index.remove(names(1))
    assert len(index) == 6


def test_ids_of_any_letters_survive(tmp_path: Path) -> None:
    ids = ["é/日本 語.jpg", "caf\udce9.png", "", "a'b\"c\\d\n.jpg", "🏛.jpg"]
    Index.build(descriptors(5), ids, stamps=[-1, 2, 3, 4, 2**62]).save(tmp_path / "a.index")
    for memory_map in (False, True):
        again = Index.load(tmp_path / "a.index", memory_map=memory_map)
        assert again.ids == ids
        assert again.rows()[1].tolist() == [-1, 2, 3, 4, 2**62]
        assert sorted(again.search(descriptors(5)[:1], 9)[1][0]) == sorted(ids)


def test_no_queries() -> None:
    scores, ids = Index.build(descriptors(3), names(3)).search(np.empty((0, 16), np.float32), 2)
    assert (scores.shape, ids) == ((0, 2), [])


def test_faiss_alone_can_read_the_file(tmp_path: Path) -> None:
    database = descriptors(8)
    Index.build(database, names(8)).save(tmp_path / "a.index")
    assert faiss.read_index(str(tmp_path / "a.index")).search(database[5:6], 1)[1].tolist() == [[5]]


@pytest.mark.parametrize("factory", ["IVF8,Flat", "PCA8,IVF8,SQ8", "IVF8,Flat,RFlat"])
def test_more_lists_find_more(factory: str, tmp_path: Path) -> None:
    rows = descriptors(640)
    index = Index.build(rows, names(640), factory, metadata={"nprobe": 8})
    index.save(tmp_path / "a.index")
    for each in (index, Index.load(tmp_path / "a.index", memory_map=True)):
        everything = each.search(rows[:50], 640, nprobe=8)[1]
        assert {len(found) for found in everything} == {640}
        assert each.search(rows[:50], 640)[1] == everything
        assert max(len(found) for found in each.search(rows[:50], 640, nprobe=1)[1]) < 640
    with pytest.raises(ValueError, match="nprobe: got 0, expected at least 1"):
        index.search(rows[:1], 1, nprobe=0)
    with pytest.raises(ValueError, match="nprobe: got 3 for an index of 'Flat', expected one of inverted lists"):
        Index.build(rows, names(640)).search(rows[:1], 1, nprobe=3)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_an_add_that_fails_midway(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = descriptors(200)
    index = Index.build(rows, names(200), factory)
    before = index.search(rows[:9], 5)[1]

    def failing(array: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        yield array[:100]
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(faiss_index, "blocks", failing)
        with pytest.raises(MemoryError):
            index.add(descriptors(150, seed=1), names(150, start=200))
    if factory == "HNSW8":
        with pytest.raises(ValueError, match="damaged by an add that failed"):
            index.search(rows[:9], 5)
        return
    assert index.search(rows[:9], 5)[1] == before
    index.add(descriptors(150, seed=1), names(150, start=200))
    assert index.search(descriptors(150, seed=1), 1)[1][7:8] == [["photos/207.jpg"]]


SAVE_FOREVER = """
import sys, numpy as np
from hamlet.retrieval import Index
rows = np.random.default_rng(0).standard_normal((20000, 64), dtype=np.float32)
number = 0
print("ready", flush=True)
while True:
    number += 1
    Index.build_file(sys.argv[1], rows, [f"{number}/{row}" for row in range(len(rows))], sys.argv[2])
    print(number, flush=True)
"""


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQ8"])
def test_killed_while_writing(factory: str, tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    for delay in (0.0, 0.03, 0.08, 0.15):
        with subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, path, factory], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        index = Index.load(path)
        assert len(index) == 20000
        assert len({id.split("/")[0] for id in index.ids}) == 1
    with replacing(tmp_path / "a.index"):
        Index.build_file(path, descriptors(200), names(200), "Flat")
        assert len(list(tmp_path.iterdir())) == 2, "what is still written to stays, what was left goes"

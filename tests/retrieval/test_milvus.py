"""Against Milvus Lite; no server has been tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hamlet.retrieval import Index
from hamlet.retrieval.milvus import MilvusIndex
from hamlet.retrieval.milvus_connection import Address

lite = pytest.mark.usefixtures("milvus_lite")


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address.parse(f"milvus://{tmp_path}/photos.db")


def descriptors(count: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, 24), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Quotes would end the strings that pymilvus makes its filters of.
ODD = ["a 'b' \"c\"\\.jpg", "' or id != '.jpg", "é/日本.jpg", "caf\udce9.png", "100%25.jpg", "tab\tnew\nline.jpg"]


def ids(count: int) -> list[str]:
    return [*ODD, *(f"photos/{row}.jpg" for row in range(len(ODD), count))]


@lite
@pytest.mark.parametrize(
    ("factory", "least"), [("Flat", 1.0), ("HNSW16", 0.95), ("IVF16,Flat", 0.2), ("IVF16,SQ8", 0.2)]
)
def test_the_answers_are_those_of_faiss_flat(factory: str, least: float, address: Address) -> None:
    database, queries = descriptors(2500), descriptors(1100, seed=1)
    MilvusIndex.build(address, database, ids(2500), factory, metadata={"model": "é", "longest_side": 64})
    index = MilvusIndex.open(address)
    assert (len(index), index.dim, index.factory) == (2500, 24, factory)
    assert index.metadata == {"model": "é", "longest_side": 64}
    scores, found = index.search(queries, 10)
    expected, expected_ids = Index.build(database, ids(2500)).search(queries, 10)
    pairs = zip(found, expected_ids, strict=True)
    assert np.mean([len(set(each) & set(wanted)) / 10 for each, wanted in pairs]) >= least
    assert scores.dtype == np.float32
    if factory == "Flat":
        assert found == expected_ids
        assert np.allclose(scores, expected, atol=1e-5)


@lite
def test_more_neighbours_than_there_are_and_no_queries(address: Address) -> None:
    index = MilvusIndex.build(address, descriptors(8), ids(8))
    scores, found = index.search(descriptors(2, seed=1), 100)
    assert scores.shape == (2, 8)
    assert [sorted(each) for each in found] == [sorted(ids(8))] * 2
    scores, found = index.search(np.empty((0, 24), np.float32), 3)
    assert (scores.shape, found) == ((0, 3), [])
    with pytest.raises(ValueError, match="k: got 20000, expected at most 16384"):
        index.search(descriptors(1), 20000)
    with pytest.raises(ValueError, match=r"shape \(1, 8\), expected \(n, 24\)"):
        index.search(np.ones((1, 8), np.float32), 3)


@lite
def test_add_and_remove_by_ids_of_any_letters(address: Address) -> None:
    database = descriptors(1500)
    index = MilvusIndex.build(address, database, ids(1500), stamps=range(1500))
    index.remove(ODD)
    assert len(index) == 1500 - len(ODD)
    assert not set(ODD) & {id for each in index.search(database[: len(ODD)], 5)[1] for id in each}
    with pytest.raises(ValueError, match=r"got '.*', expected ids that the index holds"):
        index.remove(["photos/7.jpg", ODD[0]])
    with pytest.raises(ValueError, match=r"'photos/9\.jpg' comes twice"):
        index.add(database[:2], ["new.jpg", "photos/9.jpg"])
    assert len(index) == 1500 - len(ODD)
    index.add(database[: len(ODD)], ODD, stamps=range(len(ODD)))
    again = MilvusIndex.open(address)
    assert again.search(database[: len(ODD)], 1)[1] == [[id] for id in ODD]
    held, stamps = again.rows()
    assert sorted(held) == sorted(ids(1500))
    assert stamps[held.find(ids(1500))].tolist() == list(range(1500))


@lite
def test_building_again_takes_the_place_of_what_was_there(address: Address) -> None:
    MilvusIndex.build(address, descriptors(9), ids(9), metadata={"a": 1})
    with pytest.raises(ValueError, match="ids: 'a' comes twice"):
        MilvusIndex.build(address, descriptors(2), ["a", "a"])
    with pytest.raises(ValueError, match="factory: got 'IVF4,PQ8', expected Flat, HNSW32"):
        MilvusIndex.build(address, descriptors(2), ["a", "b"], "IVF4,PQ8")
    assert len(MilvusIndex.open(address)) == 9
    MilvusIndex.build(address, descriptors(2)[:, :8], ["a", "b"], metadata={"a": 2})
    index = MilvusIndex.open(address)
    assert (len(index), index.dim, index.metadata) == (2, 8, {"a": 2})


@lite
def test_what_is_not_there_or_foreign(address: Address, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"photos\.db: no such folder, expected one that `hamlet index --store` made"):
        MilvusIndex.open(address)
    assert not (tmp_path / "photos.db").exists()
    (tmp_path / "text.db").write_text("hello")
    told = r"text\.db: Milvus says: .*does another process have it open\? If none has, it is damaged: remove it"
    with pytest.raises(ValueError, match=told) as caught:
        MilvusIndex.open(Address.parse(f"milvus://{tmp_path}/text.db"))
    assert "\n" not in str(caught.value)
    from pymilvus import MilvusClient

    client = MilvusClient(str(tmp_path / "other.db"))
    client.create_collection("hamlet", dimension=4)
    other = Address.parse(f"milvus://{tmp_path}/other.db")
    with pytest.raises(ValueError, match="a collection of something else"):
        MilvusIndex.open(other)
    # Nor is it dropped, under either of the names that a build takes.
    with pytest.raises(ValueError, match="the collection hamlet is of something else"):
        MilvusIndex.build(other, descriptors(2), ["a", "b"])
    client.rename_collection("hamlet", "hamlet_building")
    with pytest.raises(ValueError, match="the collection hamlet_building is of something else"):
        MilvusIndex.build(other, descriptors(2), ["a", "b"])
    assert client.has_collection("hamlet_building")
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/photos: Milvus says: "):
        MilvusIndex.open(Address.parse("milvus://127.0.0.1:9/photos"))


@pytest.mark.parametrize(
    ("text", "uri", "collection"),
    [
        ("milvus://photos.db", "photos.db", "hamlet"),
        ("milvus:///data/photos.db", "/data/photos.db", "hamlet"),
        ("milvus://host:19530/photos", "http://host:19530", "photos"),
        ("https://host/photos/", "https://host", "photos"),
    ],
)
def test_addresses(text: str, uri: str, collection: str) -> None:
    assert Address.parse(text) == Address(uri, collection)


@pytest.mark.parametrize(
    "text",
    [
        *("milvus://", "milvus://host:1", "milvus:///photos", "http://h/a-b", "http://h/a/b"),
        *("milvus://10.0.0.5:19530/photos.db", "https://h:port/photos", "10.0.0.5:19530/photos.db"),
        *("http://h:65536/photos", "http://h:0/photos", "http://[h/photos", "milvus://h:19530.db"),
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected milvus://FOLDER\.db for Milvus Lite"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text", ["http://me:secret@host/a-b", "milvus://me:secret@h/a.db", "http://h/a?token=secret", "me:secret@h/a"]
)
def test_passwords_do_not_stand_in_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="MILVUS_TOKEN") as caught:
        Address.parse(text)
    assert "secret" not in str(caught.value)


@lite
def test_an_add_that_fails_midway_leaves_nothing(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymilvus import MilvusClient, MilvusException

    index = MilvusIndex.build(address, descriptors(20), ids(20))
    with pytest.raises(ValueError, match=r"ids: 'aaa.*takes 65536 bytes in Milvus, expected at most 65535"):
        index.add(descriptors(2), ["short", "a" * 65_536])
    insert, calls = MilvusClient.insert, []

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise MilvusException(message="the disk is full; secret")
        return insert(*arguments)

    monkeypatch.setattr(MilvusClient, "insert", failing)
    monkeypatch.setenv("MILVUS_TOKEN", "me:secret")
    with pytest.raises(ValueError, match=r"Milvus says: the disk is full; \*\*\*"):
        index.add(descriptors(2500), [f"new/{row}" for row in range(2500)])
    assert len(calls) == 3
    assert sorted(index.rows()[0]) == sorted(ids(20))


@lite
@pytest.mark.parametrize("undone", [True, False])
def test_a_removal_that_fails_midway_is_undone_or_says_that_it_was_not(
    address: Address, monkeypatch: pytest.MonkeyPatch, undone: bool
) -> None:
    from pymilvus import MilvusClient, MilvusException

    index = MilvusIndex.build(address, descriptors(2500), ids(2500), stamps=range(2500))
    gone = ids(2500)[:2400]
    delete, calls = MilvusClient.delete, []

    def failing(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise MilvusException(message="the disk is full")
        return delete(*arguments, **options)

    def broken(*arguments: object, **options: object) -> None:
        raise MilvusException(message="the disk is still full")

    monkeypatch.setattr(MilvusClient, "delete", failing)
    if undone:
        with pytest.raises(ValueError, match="Milvus says: the disk is full"):
            index.remove(gone)
    else:
        monkeypatch.setattr(MilvusClient, "upsert", broken)
        with (
            pytest.warns(UserWarning, match=r"could not be undone; .*`hamlet index --update`"),
            pytest.raises(ValueError, match="Milvus says: the disk is full"),
        ):
            index.remove(gone)
    held, stamps = index.rows()
    assert sorted(held) == sorted(ids(2500) if undone else ids(2500)[1000:])
    assert stamps[held.find(ids(2500)[1000:])].tolist() == list(range(1000, 2500))
    if undone:
        assert stamps[held.find(ids(2500))].tolist() == list(range(2500))
        scores, found = index.search(descriptors(2500)[::100], 1)
        assert found == [[id] for id in ids(2500)[::100]]
        assert scores[:, 0] == pytest.approx(1, abs=1e-6)
        index.remove(gone)
        assert len(index) == 100


@lite
def test_nprobe(address: Address) -> None:
    index = MilvusIndex.build(address, descriptors(2500), ids(2500), "IVF128,Flat", metadata={"nprobe": 128})
    expected = Index.build(descriptors(2500), ids(2500)).search(descriptors(50, seed=1), 10)[1]
    assert index.search(descriptors(50, seed=1), 10)[1] == expected
    assert index.search(descriptors(50, seed=1), 10, nprobe=1)[1] != expected
    with pytest.raises(ValueError, match="nprobe: got 0"):
        index.search(descriptors(1), 1, nprobe=0)


def test_a_token_that_goes_unencrypted_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymilvus")
    monkeypatch.setenv("MILVUS_TOKEN", "secret")
    with (
        pytest.warns(UserWarning, match="MILVUS_TOKEN goes there unencrypted; use https://") as warned,
        pytest.raises(ValueError, match="Milvus says: ") as caught,
    ):
        MilvusIndex.open(Address.parse("milvus://127.0.0.1:9/photos"))
    assert "secret" not in f"{warned[0].message} {caught.value}"

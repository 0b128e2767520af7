from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hamlet
from hamlet.models import save_checkpoint
from hamlet.retrieval import search
from hamlet.retrieval.extraction import Extraction, extract
from hamlet.retrieval.search import Built, build_index, search_index
from hamlet.retrieval.stores import open_store

SIDE = 64


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the images that each extraction was asked for."""
    asked: list[list[str]] = []

    def recorded(model, images, *rest, **options) -> Extraction:  # type: ignore[no-untyped-def]
        asked.append(list(images.names))
        return extract(model, images, *rest, **options)

    monkeypatch.setattr(search, "extract", recorded)
    return asked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model.pt", 0)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    for colour in ("red", "green", "blue", "white"):
        paint(tmp_path / "photographs" / f"{colour}.png", colour)
    return tmp_path / "photographs"


def checkpoint(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, hamlet.create_model("gem_mobilenetv3_small", descriptor_dim=16))
    return path


def paint(path: Path, colour: str) -> None:
    stripes = Image.new("RGB", (64, 64), colour)
    stripes.paste("black", (0, 0, 64, 24 + len(colour)))
    stripes.save(path)


def index(model: Path, photographs: Path, place: Path | str, **options: object) -> Built:
    return build_index(model, photographs, place, longest_side=SIDE, progress=False, **options)  # type: ignore[arg-type]


def change(photographs: Path) -> None:
    (photographs / "red.png").unlink()
    paint(photographs / "green.png", "yellow")
    paint(photographs / "new é.png", "purple")
    (photographs / "broken.png").write_bytes(b"no picture")


@pytest.mark.parametrize("kind", ["file", "milvus"])
def test_an_update_is_as_indexing_again(
    kind: str,
    model: Path,
    photographs: Path,
    tmp_path: Path,
    described: list[list[str]],
    request: pytest.FixtureRequest,
) -> None:
    if kind == "milvus":
        request.getfixturevalue("milvus_lite")
    places: list[Path | str] = [tmp_path / "a.index", tmp_path / "b.index"]
    if kind == "milvus":
        places = [f"milvus://{place}.db" for place in places]
    index(model, photographs, places[0])
    change(photographs)
    updated = index(model, photographs, places[0], update=True)
    assert described[-1] == ["broken.png", "green.png", "new é.png"]
    assert (updated.added, updated.removed, [name for name, _ in updated.failures]) == (2, 2, ["broken.png"])
    index(model, photographs, places[1])
    query = photographs / "green.png"
    (one,), _ = search_index(places[0], [query], top=9)
    (two,), _ = search_index(places[1], [query], top=9)
    assert one.ids == two.ids
    assert one.scores == pytest.approx(two.scores, abs=1e-5)
    assert set(one.ids) == {"blue.png", "green.png", "new é.png", "white.png"}
    again = index(model, photographs, places[0], update=True)
    assert (described[-1], again.added, again.removed, len(again.index)) == (["broken.png"], 0, 0, 4)
    assert not list(tmp_path.glob("*.extraction"))


@pytest.mark.parametrize(("kind", "step"), [("file", 1), ("milvus", 9)])
def test_an_update_killed_anywhere_goes_on(
    kind: str, step: int, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "milvus":
        request.getfixturevalue("milvus_lite")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # It may have been installed for the tests alone.
    command = [sys.executable, "-m", "tests.retrieval.killed_updates", str(tmp_path), kind, str(step)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert int(told.stdout) >= 15


def test_an_image_that_only_moved_in_time_is_described_again(
    model: Path, photographs: Path, tmp_path: Path, described: list[list[str]]
) -> None:
    index(model, photographs, tmp_path / "a.index")
    os.utime(photographs / "blue.png", (1, 1))
    updated = index(model, photographs, tmp_path / "a.index", update=True)
    assert (described[-1], updated.added, updated.removed) == (["blue.png"], 1, 1)


def test_what_an_update_refuses_before_any_work(
    model: Path, photographs: Path, tmp_path: Path, described: list[list[str]]
) -> None:
    place = tmp_path / "a.index"
    with pytest.raises(ValueError, match=r"a\.index: No such file or directory, expected an index file"):
        index(model, photographs, place, update=True)
    index(model, photographs, place)
    before = place.read_bytes()
    other = checkpoint(tmp_path / "other.pt", 1)
    with pytest.raises(ValueError, match=r"made with fingerprint .*, not .*; update it with what it was made with"):
        index(other, photographs, place, update=True)
    with pytest.raises(ValueError, match="made with longest_side 64, not 96"):
        build_index(model, photographs, place, longest_side=96, update=True)
    (tmp_path / "elsewhere").mkdir()
    paint(tmp_path / "elsewhere" / "red.png", "red")
    with pytest.raises(ValueError, match=r"made with root .*photographs, not .*elsewhere"):
        index(model, tmp_path / "elsewhere", place, update=True)
    with pytest.raises(ValueError, match="factory: got 'HNSW8' with an update"):
        index(model, photographs, place, update=True, factory="HNSW8")
    with pytest.raises(ValueError, match="check: got it with an update"):
        index(model, photographs, place, update=True, check=True)
    assert place.read_bytes() == before
    assert len(described) == 1


def test_a_kind_that_cannot_remove_grows_but_says_so_before_it_shrinks(
    model: Path, photographs: Path, tmp_path: Path, described: list[list[str]]
) -> None:
    place = tmp_path / "a.index"
    index(model, photographs, place, factory="HNSW8")
    paint(photographs / "purple.png", "purple")
    assert index(model, photographs, place, update=True).added == 1
    (photographs / "red.png").unlink()
    with pytest.raises(ValueError, match="'HNSW8' cannot remove; make the index again"):
        index(model, photographs, place, update=True)
    assert len(described) == 2
    assert len(open_store(place)) == 5


def test_everything_may_be_gone(model: Path, photographs: Path, tmp_path: Path) -> None:
    index(model, photographs, tmp_path / "a.index")
    for path in photographs.iterdir():
        path.unlink()
    paint(photographs / "one.png", "purple")
    assert index(model, photographs, tmp_path / "a.index", update=True).removed == 4
    assert list(open_store(tmp_path / "a.index").rows()[0]) == ["one.png"]

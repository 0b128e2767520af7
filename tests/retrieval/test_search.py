from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hamlet
from hamlet.models import save_checkpoint
from hamlet.retrieval import Index
from hamlet.retrieval.search import build_index, search_index

SIDE = 64


@pytest.fixture
def pictures(write_pictures: Callable[[Path, int], list[str]], tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", 4)
    return tmp_path / "pictures"


def checkpoint(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_checkpoint(path, hamlet.create_model("gem_mobilenetv3_small", descriptor_dim=16))
    return path


@pytest.fixture
def indexed(pictures: Path, tmp_path: Path) -> Path:
    model = checkpoint(tmp_path / "model.pt", 0)
    build_index(model, pictures, tmp_path / "a.index", longest_side=SIDE, progress=False)
    return tmp_path / "a.index"


def first(folder: Path) -> Path:
    return sorted(path for path in folder.rglob("*") if path.is_file())[0]


def test_each_query_gets_its_answer_also_one_given_twice_or_by_a_link(indexed: Path, pictures: Path) -> None:
    query, link, broken = first(pictures), pictures.parent / "link.png", pictures.parent / "broken.png"
    link.symlink_to(query)
    broken.write_bytes(b"")
    found, failures = search_index(indexed, [query, link, broken, query, broken], top=2)
    assert [each.query for each in found] == [query, link, query]
    assert found[0].ids == found[1].ids == found[2].ids
    assert found[0].paths[0] == query
    assert failures == [(str(broken), "the file is empty")] * 2


def test_the_checkpoint_beside_the_index_serves_where_the_remembered_one_has_changed(
    indexed: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.replace(indexed, tmp_path / "elsewhere" / "a.index")
    os.replace(tmp_path / "model.pt", tmp_path / "elsewhere" / "model.pt")
    checkpoint(tmp_path / "model.pt", 1)
    found, _ = search_index(tmp_path / "elsewhere" / "a.index", [first(pictures)], top=1)
    assert found[0].scores[0] == pytest.approx(1, abs=1e-4)


def test_an_index_of_another_make_is_refused(indexed: Path, pictures: Path, tmp_path: Path) -> None:
    rows = np.eye(2, 16, dtype=np.float32)
    Index.build(rows, ["a", "b"], metadata={"checkpoint": "model.pt"}).save(tmp_path / "b.index")
    with pytest.raises(
        ValueError,
        match="does not tell its fingerprint, longest_side, root, scales, whitening, whitening_digest; make it",
    ):
        search_index(tmp_path / "b.index", [first(pictures)])


def test_ids_do_not_leave_the_folder_of_the_images(indexed: Path, pictures: Path, tmp_path: Path) -> None:
    index = Index.load(indexed)
    rows = np.eye(2, 16, dtype=np.float32)
    Index.build(rows, ["../a.png", "b.png"], metadata=index.metadata).save(tmp_path / "b.index")
    with pytest.raises(ValueError, match=r"'\.\./a\.png': got a path with '\.\.'"):
        search_index(tmp_path / "b.index", [first(pictures)])

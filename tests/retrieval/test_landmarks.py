from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hamlet.retrieval.datasets import (
    Ranking,
    load_benchmark,
    load_landmark_images,
    load_landmark_recognition,
    load_landmark_retrieval,
    load_landmark_training,
)

TRAIN = [f"a{n:015x}" for n in range(6)]
INDEX = [f"b{n:015x}" for n in range(4)]
TEST = [f"c{n:015x}" for n in range(5)]
# Headers and forms of the published files; index landmarks are not train landmarks.
TABLES = {
    "train.csv": "id,url,landmark_id\n" + "".join(f"{id},http://x/{id}.jpg,{n // 2}\n" for n, id in enumerate(TRAIN)),
    "train_clean.csv": f"landmark_id,images\n7,{TRAIN[0]} {TRAIN[1]}\n9,{TRAIN[4]}\n",
    "train_label_to_hierarchical.csv": "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"
    '7,"http://commons.wikimedia.org/wiki/Category:A,_B",Church,church/cathedral,human-made\n9,http://x,,,\n',
    "index.csv": "id\n" + "".join(f"{id}\n" for id in INDEX),
    "test.csv": "id\n" + "".join(f"{id}\n" for id in TEST),
    "retrieval_solution_v2.1.csv": "id,images,Usage\n"
    f"{TEST[0]},{INDEX[2]} {INDEX[0]},Private\n{TEST[1]},None,Ignored\n{TEST[2]},{INDEX[1]},Public\n",
    "recognition_solution_v2.1.csv": "id,landmarks,Usage\n"
    f"{TEST[0]},7 9,Private\n{TEST[1]},,Private\n{TEST[2]},9,Public\n{TEST[3]},,Ignored\n{TEST[4]},,Public\n",
}


def write(root: Path, tables: Path | None = None) -> None:
    for split, ids in {"train": TRAIN, "index": INDEX, "test": TEST}.items():
        for id in ids:
            path = root / split / id[0] / id[1] / id[2] / f"{id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
    (tables or root).mkdir(exist_ok=True)
    for name, content in TABLES.items():
        ((tables or root) / name).write_text(content)


@pytest.mark.parametrize(("root", "tables"), [("", ""), ("gldv2", "gldv2"), ("", "metadata")])
def test_layouts_as_downloaded(tmp_path: Path, root: str, tables: str) -> None:
    write(tmp_path / root, tmp_path / tables)
    for split, ids in (("index", INDEX), ("test", TEST)):
        images = load_landmark_images(split, tmp_path)
        assert images.names == [f"{id[0]}/{id[1]}/{id[2]}/{id}.jpg" for id in ids]
        assert all(images.path(name).is_file() for name in images.names)


def test_training_sets(tmp_path: Path) -> None:
    write(tmp_path)
    clean, whole = load_landmark_training(tmp_path), load_landmark_training(tmp_path, clean=False)
    assert [Path(name).stem for name in clean.images.names] == [TRAIN[0], TRAIN[1], TRAIN[4]]
    assert clean.labels.tolist() == [7, 7, 9]
    assert clean.hierarchy == {7: ("Church", "church/cathedral", "human-made"), 9: ("", "", "")}
    assert [Path(name).stem for name in whole.images.names] == TRAIN
    assert whole.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "train_label_to_hierarchical.csv").unlink()
    assert load_landmark_training(tmp_path).hierarchy == {}


def test_retrieval_keeps_the_splits_apart_and_drops_what_is_ignored(tmp_path: Path) -> None:
    write(tmp_path)
    found = load_landmark_retrieval(tmp_path)
    assert found.queries is not None
    assert [Path(name).stem for name in found.queries.images.names] == [TEST[0], TEST[2]]
    assert found.relevant == [[2, 0], [1]]
    assert found.depth == 100
    assert found.verdicts(0, np.arange(4), "private").tolist() == [1, 0, 1, 0]
    assert [found.positives(0, setup) for setup in found.setups] == [0, 2]
    # The first query finds 1, 2, 3, 0, with 2 and 0 right; the second 0, 1, 2, 3, with 1 right.
    ranking = Ranking(np.array([0, 1]), np.array([[1, 0], [2, 1], [3, 2], [0, 3]]), np.zeros((4, 2), np.float32))
    assert found.summary(found.per_query(ranking, (1, 4))) == {
        "public": {"map@100": 1 / 2, "p@1": 0, "p@4": 1 / 4},
        "private": {"map@100": (1 / 2 + 2 / 4) / 2, "p@1": 0, "p@4": 1 / 2},
    }


def test_cut_offs_beyond_the_places_that_are_kept(tmp_path: Path) -> None:
    write(tmp_path)
    ranking = Ranking(np.array([0]), np.array([[1]]), np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match="ks: got 101, expected at most 100"):
        load_landmark_retrieval(tmp_path).per_query(ranking, (1, 101))


def test_recognition_lets_neighbours_vote(tmp_path: Path) -> None:
    write(tmp_path)
    found = load_landmark_recognition(tmp_path)
    assert found.queries is not None
    assert [Path(name).stem for name in found.queries.images.names] == [TEST[0], TEST[1], TEST[2], TEST[4]]
    assert found.truth == [{7, 9}, set(), {9}, set()]
    assert found.depth == 5
    assert found.verdicts(2, np.arange(3), "private").tolist() == [0, 0, 1]
    rows = np.array([[2, 2, 0, 0], [0, 0, 1, 1], [1, 1, 2, 2]])
    scores = np.array([[0.5, 0.9, 0.3, 0.8], [0.25, 0.5, 0.25, 0.5], [0.125, 0.125, 0.125, 0.5]], dtype=np.float32)
    scored = found.per_query(Ranking(np.arange(4), rows, scores), (1,))
    # Sums of the scores: 9 with 0.5 against 7 with 0.375; 9 with 0.9; 7 with 0.55 against 9; 7 with 1.3.
    assert scored["private"]["landmark"][:2].tolist() == [9, 9]
    assert scored["private"]["score"][:2] == pytest.approx([0.5, 0.9])
    assert scored["public"]["landmark"][2:].tolist() == [7, 7]
    assert scored["public"]["score"][2:] == pytest.approx([0.55, 1.3])
    # Private: the image of no landmark comes first, then a right answer; public: two wrong ones.
    assert found.summary(scored) == {"public": {"gap": 0, "accuracy": 0}, "private": {"gap": 1 / 2, "accuracy": 1}}
    nothing = found.per_query(Ranking(np.arange(4), rows[:0], scores[:0]), (1,))
    assert found.summary(nothing)["private"] == {"gap": 0, "accuracy": 0}


def test_images_that_cannot_be_read_have_no_vote(tmp_path: Path) -> None:
    write(tmp_path)
    found = load_landmark_recognition(tmp_path)
    # The second and third neighbours are unread: one of the first one's landmark, one of another.
    scores = np.array([[-0.25], [-np.inf], [-np.inf]], dtype=np.float32)
    scored = found.per_query(Ranking(np.array([0]), np.array([[0], [1], [2]]), scores), (1,))["private"]
    assert (scored["landmark"].tolist(), scored["score"].tolist()) == ([7], [-0.25])


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def edited(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new))

    return edited


RETRIEVAL, RECOGNITION = "retrieval_solution_v2.1.csv", "recognition_solution_v2.1.csv"
BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no index": (
        "retrieval",
        lambda d: (d / "index.csv").unlink(),
        r"/index\.csv: no such file, expected a CSV file with",
    ),
    "no solution": ("retrieval", lambda d: (d / RETRIEVAL).unlink(), "v2.1.csv: no such file, .* id,images,Usage"),
    "another header": ("retrieval", edit(RETRIEVAL, "images", "pictures"), "no column 'images', expected a CSV file"),
    "a short row": ("retrieval", edit(RETRIEVAL, ",Private", ""), "line 2: 2 values, expected 3 as in the header"),
    "another usage": (
        "retrieval",
        edit(RETRIEVAL, "Private", "Secret"),
        "got Usage 'Secret', expected Public, Private",
    ),
    "not in the index": ("retrieval", edit(RETRIEVAL, INDEX[1], TRAIN[0]), f"got '{TRAIN[0]}', expected ids of images"),
    "an id that leaves": (
        "retrieval",
        edit("index.csv", INDEX[0], "../../../etc/passwd"),
        r"/index\.csv, line 2: got the image '\.\./.*' *, exp",
    ),
    "an id with dots": (
        "retrieval",
        edit(RETRIEVAL, TEST[0], "..."),
        r"v2\.1\.csv, line 2: got the image '\.\.\.', expected an id",
    ),
    "a query twice": ("retrieval", edit(RETRIEVAL, TEST[2], TEST[0]), "csv, line 4: .* is listed twice"),
    "an image missing": (
        "retrieval",
        lambda d: next((d / "index").rglob("*.jpg")).unlink(),
        r"index: lacks 1 of 4 images, such as b/0/0/.* \(/.*/index\.csv, line [2-5]\)",
    ),
    "no images": ("recognition", lambda d: (d / "train").rename(d / "old"), "train: no such folder, expected 3 images"),
    "no landmark": (
        "recognition",
        edit("train_clean.csv", "9,", "nine,"),
        "line 3: got 'nine', expected the number of",
    ),
    "a number too long": ("recognition", edit(RECOGNITION, "7 9", "7" * 19), "expected the number of"),
    "no number": ("recognition", edit(RECOGNITION, "7 9", "7 x"), "line 2: got 'x', expected the number"),
    "no text": ("recognition", lambda d: (d / "train_clean.csv").write_bytes(b"\xff\xfe"), "train_clean.csv: broken "),
    "empty": ("recognition", lambda d: (d / "train_clean.csv").write_text(""), "no column 'landmark_id'"),
    "only a header": (
        "recognition",
        lambda d: (d / "train_clean.csv").write_text("landmark_id,images\n"),
        "lists no image",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_missing_or_broken_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    task, spoil, message = BROKEN[kind]
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(f"gldv2-{task}", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_another_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split: got 'train', expected index or test"):
        load_landmark_images("train", tmp_path)

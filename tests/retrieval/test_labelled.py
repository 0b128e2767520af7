from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hamlet.retrieval.datasets import Ranking, list_classes, load_benchmark, load_labelled_csv

NAMES = ("a.png", "b.png", "below/c.png", "d.png")


def write(folder: Path, text: str) -> Path:
    (folder / "below").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(folder / name)
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_folder_of_classes(write_pictures: Callable[[Path, int], list[str]], tmp_path: Path) -> None:
    write_pictures(tmp_path, 4)
    (tmp_path / "2/deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "2/deep/a.png")
    images, labels = list_classes(tmp_path)
    assert dict(zip(images.names, labels, strict=True)) == {
        "0/000.png": "0", "0/003.png": "0", "1/001.png": "1", "2/002.png": "2", "2/deep/a.png": "2"
    }  # fmt: skip
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"'loose\.png' lies in no subfolder"):
        load_benchmark("folder", tmp_path)
    with pytest.raises(ValueError, match="no such folder, expected one with a subfolder for each class"):
        load_benchmark("folder", tmp_path / "nowhere")


def test_without_roles_every_picture_is_searched_among_all_others(tmp_path: Path) -> None:
    text = '\ufefflabel,note,image\ntower,x,a.png\n"bridge, old",,./b.png\ntower,,below/c.png\ntower,,d.png\n'
    path = write(tmp_path, text)
    found = load_labelled_csv(path)
    assert found.queries is None
    assert found.database[0].images.names == list(NAMES)
    ranking = Ranking(np.array([0]), np.array([[0], [1], [3], [2]]), np.zeros((4, 1), dtype=np.float32))
    # Without a itself: b, d, c.
    assert found.summary(found.per_query(ranking, (1, 2))) == {
        "all": {"map": (1 / 2 + 2 / 3) / 2, "p@1": 0, "p@2": 1 / 2}
    }
    assert list_classes(path)[1] == ["tower", "bridge, old", "tower", "tower"]


def test_roles(tmp_path: Path) -> None:
    rows = ["a.png,tower,query", "b.png,tower,database", "a.png,tower,database", "d.png,church,database"]
    found = load_labelled_csv(write(tmp_path, "\n".join(["image,label,role", *rows])))
    assert found.queries is not None
    assert found.queries.images.names == ["a.png"]
    assert found.database[0].images.names == ["b.png", "a.png", "d.png"]
    ranking = Ranking(np.array([0]), np.array([[2], [1], [0]]), np.zeros((3, 1), dtype=np.float32))
    assert found.per_query(ranking, ())["all"]["map"] == pytest.approx([(1 / 2 + 2 / 3) / 2])


BROKEN = {
    "no column": (
        "image,class\na.png,x\n",
        "labels.csv: no column 'label', expected a CSV file with the columns image,label",
    ),
    "a missing picture": (
        "image,label\na.png,x\nz.png,x\n",
        r"lacks 1 of 2 images, such as z\.png \(/.*labels\.csv, line 3\)",
    ),
    "a path that leaves": (
        "image,label\na.png,x\n../z.png,x\n",
        r"'\.\./z.png': got a path with '\.\.', expected one below",
    ),
    "an absolute path": ("image,label\na.png,x\n/etc/passwd,x\n", "line 3: '/etc/passwd': got an absolute path"),
    "a picture twice": ("image,label\na.png,x\n./a.png,x\n", "line 3: 'a.png' is listed twice"),
    "no label": ("image,label\na.png,x\nb.png,\n", "line 3: an empty image or label"),
    "no rows": ("image,label\n", "no rows, expected an image and its label"),
    "another role": ("image,label,role\na.png,x,judge\n", "line 2: got the role 'judge', expected query or database"),
    "a role missing": ("image,label,role\na.png,x,query\nb.png,x,\n", "line 3: got the role '', expected"),
    "no database": ("image,label,role\na.png,x,query\n", "no row with the role 'database'"),
    "nothing to find": (
        "image,label,role\na.png,x,query\nb.png,y,database\n",
        "no query has its label in the database",
    ),
    "single": ("image,label\na.png,x\nb.png,y\n", "every class has a single image"),
    "an open quote": ('image,label\n"a.png,x\n', "labels.csv: broken"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    text, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark("csv", write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"labels\.csv: no such file, expected a CSV file with the columns image,label"
    ):
        load_benchmark("csv", tmp_path / "labels.csv")
    with pytest.raises(ValueError, match="expected a CSV file"):
        load_benchmark("csv", tmp_path)


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "in", "image,label\na.png,x\nb.png,x\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="a link that leaves the folder"):
        load_labelled_csv(path).database[0].images.path("a.png")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hamlet.retrieval.datasets import Oxford, Ranking, load_benchmark, load_oxford

# What the ground truth's archive holds, for one query of each benchmark.
TRUTH = {
    "oxford5k": ("all_souls_1", "oxc1_all_souls_000013 136.5 34.1 648.5 955.7\n"),
    "paris6k": ("defense_1", "all_souls_000013 136.5 34.1 648.5 955.7\n"),
}
LISTS = {"good": "all_souls_000013\nall_souls_000026\n", "ok": "radcliffe_000002\n", "junk": ""}
IMAGES = ("all_souls_000013", "all_souls_000026", "magdalen_000001", "radcliffe_000002")


def write(images: Path, truth: Path, name: str = "oxford5k") -> None:
    query, line = TRUTH[name]
    for folder in (images, truth):
        folder.mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        Image.new("RGB", (4, 4)).save(images / f"{image}.jpg")
    (truth / f"{query}_query.txt").write_text(line)
    for kind, lines in LISTS.items():
        (truth / f"{query}_{kind}.txt").write_text(lines)


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize(
    ("images", "truth"),
    [("jpg", "gt"), ("", ""), ("paris/some", "truth"), ("{name}/jpg", "{name}"), ("{name}", "{name}/gt")],
)
def test_layouts_as_downloaded(tmp_path: Path, name: str, images: str, truth: str) -> None:
    write(tmp_path / images.format(name=name), tmp_path / truth.format(name=name), name)
    found = load_benchmark(name, tmp_path)
    assert isinstance(found, Oxford)
    (database,), queries = found.database, found.queries
    assert queries is not None
    assert [Path(image).stem for image in database.images.names] == list(IMAGES)
    assert queries.images.path(queries.images.names[0]) == database.images.path(database.images.names[0])
    assert queries.boxes == [[136.5, 34.1, 648.5, 955.7]]
    assert found.gnd == [{"good": [0, 1], "ok": [3], "junk": []}]
    assert found.needs_all_queries


def test_the_protocol_is_the_original(tmp_path: Path) -> None:
    write(tmp_path, tmp_path)
    ranking = Ranking(np.array([0]), np.array([[0], [2], [3], [1]]), np.zeros((4, 1), dtype=np.float32))
    found = load_oxford("oxford5k", tmp_path).per_query(ranking, (1,))["original"]
    assert found["map"] == pytest.approx([((1 + 1) + (1 / 2 + 2 / 3) + (2 / 3 + 3 / 4)) / 6])
    assert found["p@1"] == [1]
    benchmark = load_oxford("oxford5k", tmp_path)
    assert benchmark.verdicts(0, np.arange(4), "original").tolist() == [1, 1, 0, 1]
    assert benchmark.positives(0, "original") == 3


def test_a_name_that_comes_again_counts_once(tmp_path: Path) -> None:
    write(tmp_path, tmp_path)
    (tmp_path / "all_souls_1_ok.txt").write_text("all_souls_000013\nradcliffe_000002\nradcliffe_000002\n")
    found = load_oxford("oxford5k", tmp_path)
    assert found.gnd == [{"good": [0, 1], "ok": [3], "junk": []}]
    assert found.positives(0, "original") == 3


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def test_a_linked_folder_of_images(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", tmp_path / "oxford5k")
    (tmp_path / "oxford5k" / "jpg").symlink_to(tmp_path / "elsewhere")
    assert len(load_oxford("oxford5k", tmp_path).database[0].images) == 4


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no ground truth": (
        lambda d: rename(d, "all_souls_1_query.txt", "a.txt"),
        "no ground truth, expected files such as",
    ),
    "a list missing": (lambda d: (d / "all_souls_1_ok.txt").unlink(), r"all_souls_1_ok\.txt: no such file, expected a"),
    "an image missing": (
        lambda d: (d / "radcliffe_000002.jpg").unlink(),
        r"ok\.txt: names 'radcliffe_000002', expected",
    ),
    "a query missing": (lambda d: (d / "all_souls_000013.jpg").unlink(), r"query\.txt: names 'all_souls_000013'"),
    "junk that is good": (
        lambda d: (d / "all_souls_1_junk.txt").write_text("all_souls_000026\n"),
        r"junk\.txt: names 'all_souls_000026', expected no image that is good",
    ),
    "no text": (lambda d: (d / "all_souls_1_ok.txt").write_bytes(b"\xff"), r"ok\.txt: not UTF-8 text, expected a name"),
    "an empty query": (
        lambda d: (d / "all_souls_1_query.txt").write_text(""),
        r"query\.txt: got '', expected one line",
    ),
    "no numbers": (lambda d: (d / "all_souls_1_query.txt").write_text("oxc1_a 1 2 3 x"), "expected one line such as"),
    "three numbers": (lambda d: (d / "all_souls_1_query.txt").write_text("oxc1_a 1 2 3"), "expected one line such as"),
    "a box inside out": (lambda d: (d / "all_souls_1_query.txt").write_text("oxc1_a 5 2 3 4"), "expected one line"),
    "two lines": (lambda d: (d / "all_souls_1_query.txt").write_text(2 * TRUTH["oxford5k"][1]), "expected one line"),
    "Paris's ground truth": (
        lambda d: (d / "all_souls_1_query.txt").write_text(TRUTH["paris6k"][1]),
        "such as oxc1_all",
    ),
    "an image twice": (lambda d: Image.new("RGB", (4, 4)).save(d / "magdalen_000001.png"), "expected one of them"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_missing_or_broken_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    spoil, message = BROKEN[kind]
    write(tmp_path, tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_oxford("oxford5k", tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder, expected the images and the ground truth of paris6k"):
        load_oxford("paris6k", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="name: got 'oxford', expected one of oxford5k, paris6k"):
        load_oxford("oxford", tmp_path)

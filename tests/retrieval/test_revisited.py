from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hamlet.retrieval.datasets import load_benchmark, load_plain_pickle, load_revisited


def truth() -> dict[str, Any]:
    return {
        "gnd": [
            {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [0], "hard": [2], "junk": [1]},
            {"bbx": [0, 0, 10, 10], "easy": [], "hard": [1, 2], "junk": []},
        ],
        "imlist": ["ashmolean_1", "oxford_2", "radcliffe_3"],
        "qimlist": ["all_souls_1", "christ_church_2"],
    }


def write(folder: Path, content: Any, name: str = "roxford5k") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # The published files are of protocol 2.
    (folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    (folder / "jpg").mkdir(exist_ok=True)
    for image in truth()["imlist"] + truth()["qimlist"]:
        Image.new("RGB", (4, 4)).save(folder / "jpg" / f"{image}.jpg")


@pytest.mark.parametrize("below", ["", "rparis6k"])
def test_layout_as_downloaded(tmp_path: Path, below: str) -> None:
    write(tmp_path / below, truth(), "rparis6k")
    found = load_revisited("rparis6k", tmp_path)
    (database,), queries = found.database, found.queries
    assert queries is not None
    assert database.images.names == ["ashmolean_1.jpg", "oxford_2.jpg", "radcliffe_3.jpg"]
    assert queries.images.names == ["all_souls_1.jpg", "christ_church_2.jpg"]
    assert queries.images.path("all_souls_1.jpg") == tmp_path / below / "jpg" / "all_souls_1.jpg"
    assert queries.boxes == [[136.5, 34.1, 648.5, 955.7], [0, 0, 10, 10]]
    assert found.gnd == [{"easy": [0], "hard": [2], "junk": [1]}, {"easy": [], "hard": [1, 2], "junk": []}]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name: got 'oxford', expected one of roxford5k, rparis6k"):
        load_revisited("oxford", tmp_path)
    with pytest.raises(ValueError, match=r"dataset: got 'oxford', expected one of oxford5k, paris6k, roxford5k"):
        load_benchmark("oxford", tmp_path)
    with pytest.raises(ValueError, match=r"no gnd_roxford5k\.pkl, expected it there or in .*/roxford5k"):
        load_revisited("roxford5k", tmp_path)
    write(tmp_path, truth())
    for name in ("oxford_2", "christ_church_2"):
        (tmp_path / "jpg" / f"{name}.jpg").unlink()
    with pytest.raises(ValueError, match=r"jpg: lacks 2 of 5 images, such as oxford_2\.jpg"):
        load_revisited("roxford5k", tmp_path)
    (tmp_path / "jpg").rename(tmp_path / "images")
    with pytest.raises(ValueError, match="no such folder, expected 5 images in it"):
        load_revisited("roxford5k", tmp_path)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def changed(content: dict[str, Any]) -> Any:
        place: Any = content
        *above, last = path.split("/")
        for step in above:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
        return content

    return changed


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda content: [content], "no ground truth"),
    "no gnd": (lambda content: {"imlist": [], "qimlist": []}, "no ground truth"),
    "numbers for names": (change("imlist", [1, 2, 3]), "imlist is not a list of names"),
    "no names": (change("qimlist", []), "qimlist is not a list of names"),
    "a name twice": (change("imlist", ["a", "a", "b"]), "imlist has a name twice"),
    "too few queries": (change("gnd", []), "entry for each query"),
    "no box": (change("gnd/0/bbx", None), "query 0 has no box"),
    "box of three": (change("gnd/1/bbx", [0, 0, 1]), "query 1 has no box"),
    "box inside out": (change("gnd/1/bbx", [5, 5, 1, 9]), "query 1 has no box"),
    "box without end": (change("gnd/1/bbx", [0, 0, float("inf"), 9]), "query 1 has no box"),
    "index beyond": (change("gnd/0/easy", [3]), "query 0 has no list 'easy' of indices below 3"),
    "negative index": (change("gnd/0/junk", [-1]), "'junk'"),
    "index of another type": (change("gnd/0/hard", [True]), "'hard'"),
    "index in two lists": (change("gnd/0/junk", [2]), "query 0 has an image twice"),
    "list missing": (change("gnd/1/hard", None), "query 1 has no list 'hard'"),
    "path that leaves": (change("imlist", ["../../etc/passwd", "b", "c"]), r"with '\.\.'"),
    "absolute path": (change("qimlist", ["/etc/passwd", "b"]), "an absolute path"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_ground_truth(kind: str, tmp_path: Path) -> None:
    spoil, message = BROKEN[kind]
    write(tmp_path, spoil(truth()))
    with pytest.raises(ValueError, match=message) as caught:
        load_revisited("roxford5k", tmp_path)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_that_would_run_code(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"gnd": [Evil()]}, protocol=protocol))
    with pytest.raises(ValueError, match=r"names (posix|os)\.mkdir, expected dicts, lists"):
        load_plain_pickle(tmp_path / "a.pkl")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [{1, 2}, bytearray(b"a"), 1j, Path("a"), range(3)])
def test_pickle_with_anything_else(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="expected dicts, lists, strings and numbers only"):
        load_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("content", [b"", b"text, no pickle", pickle.dumps(truth())[:-20], b"Pout\n."])
def test_pickle_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl: ") as caught:
        load_plain_pickle(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)


def test_plain_pickle_of_every_protocol(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(truth(), protocol=protocol))
        assert load_plain_pickle(tmp_path / "a.pkl") == truth()


def add_distractors(folder: Path, lines: str) -> None:
    (folder / "jpg" / "00").mkdir(parents=True)
    (folder / "revisitop1m.txt").write_text(lines)
    for name in ("00/a.jpg", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / "jpg" / name)


def test_distractors_are_appended_to_the_database(tmp_path: Path) -> None:
    write(tmp_path / "roxford5k", truth())
    with pytest.raises(ValueError, match=r"no revisitop1m\.txt, expected it there or in .*/revisitop1m"):
        load_benchmark("roxford5k+1m", tmp_path)
    add_distractors(tmp_path / "revisitop1m", "00/a.jpg\n\nb.png\n")
    plain, large = load_benchmark("roxford5k", tmp_path), load_benchmark("roxford5k+1m", tmp_path)
    assert [part.images.names for part in large.database] == [plain.database[0].images.names, ["00/a.jpg", "b.png"]]
    assert large.database[1].images.path("00/a.jpg") == tmp_path / "revisitop1m/jpg/00/a.jpg"
    assert large.queries == plain.queries
    assert large.picture(0) == (large.database[0].images, "ashmolean_1.jpg")
    assert large.picture(4) == (large.database[1].images, "b.png")
    # The first query's easy, junk and hard images, and two distractors.
    assert large.setups == ("easy", "medium", "hard")
    verdicts = [large.verdicts(0, np.arange(5), setup).tolist() for setup in large.setups]
    assert verdicts == [[1, -1, -1, 0, 0], [1, -1, 1, 0, 0], [-1, -1, 1, 0, 0]]
    assert [[large.positives(query, setup) for query in range(2)] for setup in large.setups] == [[1, 0], [2, 2], [1, 2]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("00/a.jpg\nc.jpg\n", r"revisitop1m/jpg: lacks 1 of 2 images, such as c\.jpg"),
        ("../a.jpg\n", r"a path with '\.\.'"),
        ("/etc/passwd\n", "an absolute path"),
        ("b.png\nb.png\n", "'b.png' is listed twice"),
        ("\n", r"revisitop1m\.txt: empty, expected a name"),
    ],
)
def test_broken_lists_of_distractors(tmp_path: Path, lines: str, message: str) -> None:
    write(tmp_path / "roxford5k", truth())
    add_distractors(tmp_path / "revisitop1m", lines)
    with pytest.raises(ValueError, match=message):
        load_benchmark("roxford5k+1m", tmp_path)

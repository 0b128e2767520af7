"""The original Oxford5k and Paris6k, from their images and the text files of their ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList, list_images
from hamlet.retrieval.datasets.benchmark import Benchmark, Pictures, Ranking
from hamlet.retrieval.datasets.files import is_box, read_lines, stem
from hamlet.retrieval.metrics import Scores, oxford_per_query

# What stands before the name of a query's image in Oxford's files, and in Paris's.
PREFIXES = {"oxford5k": "oxc1_", "paris6k": ""}
_KINDS = ("good", "ok", "junk")


@dataclass(frozen=True)
class Oxford(Benchmark):
    """An original Oxford or Paris benchmark (Philbin et al., CVPR 2007 and 2008).

    Its queries are in the database, and among what is right.

    Args:
        gnd: for each query lists of database indices under "good", "ok" and "junk".
    """

    gnd: Sequence[Mapping[str, list[int]]]

    @property
    def needs_all_queries(self) -> bool:
        return True

    @property
    def main_setups(self) -> tuple[str, ...]:
        return ("original",)

    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        gnd = self.gnd[query]
        return np.isin(rows, gnd["good"] + gnd["ok"]).astype(np.int8) - np.isin(rows, gnd["junk"])

    def positives(self, query: int, setup: str) -> int:
        return len(self.gnd[query]["good"]) + len(self.gnd[query]["ok"])

    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        gnd = [self.gnd[query] for query in ranking.queries]
        return {"original": oxford_per_query(ranking.rows, gnd, ks)}


def load_oxford(name: str, folder: Path | str) -> Oxford:
    """Read the ground truth ``<query>_{query,good,ok,junk}.txt`` and list the images.

    All are looked for in ``folder/<name>``, or in ``folder`` where there is none: the images in ``jpg/`` or anywhere
    below, the text files together anywhere below.

    Args:
        name: "oxford5k" or "paris6k".
        folder: where it is.

    Raises:
        ValueError: an unknown name; text files that are missing, or that hold something else; an image that they name
            and that is not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("all_souls_000013.jpg", "keble_000001.jpg"):
    ...         Path(folder, name).touch()
    ...     texts = {"query": "oxc1_all_souls_000013 1.5 2 30 40", "good": "all_souls_000013", "ok": "", "junk": ""}
    ...     for kind, text in texts.items():
    ...         _ = Path(folder, f"all_souls_1_{kind}.txt").write_text(text)
    ...     benchmark = load_oxford("oxford5k", folder)
    >>> benchmark.queries.boxes, benchmark.gnd
    ([[1.5, 2.0, 30.0, 40.0]], [{'good': [0], 'ok': [], 'junk': []}])
    """
    if name not in PREFIXES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(PREFIXES)}")
    root = Path(folder, name) if Path(folder, name).is_dir() else Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder, expected the images and the ground truth of {name} in it")
    truths = sorted(root.rglob("*_query.txt"))
    if not truths:
        raise ValueError(f"{root}: no ground truth, expected files such as all_souls_1_query.txt there or below")
    images = list_images(root / "jpg" if (root / "jpg").is_dir() else root)
    rows = _rows(images)
    queries: list[str] = []
    boxes: list[list[float]] = []
    gnd: list[dict[str, list[int]]] = []
    for path in truths:
        query, box = _read_query(path, PREFIXES[name])
        queries.append(images.names[_row(rows, query, path, images)])
        boxes.append(box)
        lists = {kind: path.with_name(path.name.removesuffix("query.txt") + f"{kind}.txt") for kind in _KINDS}
        truth = {kind: _read_names(file, rows, images) for kind, file in lists.items()}
        # The two lists of what is right are one set to the protocol.
        truth["ok"] = [row for row in truth["ok"] if row not in truth["good"]]
        if both := set(truth["junk"]) & {*truth["good"], *truth["ok"]}:
            name = stem(images.names[min(both)])
            raise ValueError(f"{lists['junk']}: names {name!r}, expected no image that is good or ok too")
        gnd.append(truth)
    return Oxford(
        [Pictures(f"{name}-database", images)],
        Pictures(f"{name}-queries", ImageList(images.root, queries), boxes),
        gnd,
    )


def _rows(images: ImageList) -> dict[str, int]:
    """Database index by name without folder and extension, as the ground truth writes it."""
    rows: dict[str, int] = {}
    for row, name in enumerate(images.names):
        if rows.setdefault(stem(name), row) != row:
            raise ValueError(f"{images.root}: {images.names[rows[stem(name)]]} and {name}, expected one of them")
    return rows


def _read_query(path: Path, prefix: str) -> tuple[str, list[float]]:
    expected = f"one line such as {prefix}all_souls_000013 136.5 34.1 648.5 955.7"
    lines = read_lines(path, expected)
    words = lines[0].split() if len(lines) == 1 else []
    try:
        box = [float(word) for word in words[1:]]
    except ValueError:
        box = []
    if len(words) != 5 or not is_box(box) or not words[0].startswith(prefix):
        raise ValueError(f"{path}: got {' '.join(lines)[:80]!r}, expected {expected}")
    return words[0].removeprefix(prefix), box


def _read_names(path: Path, rows: Mapping[str, int], images: ImageList) -> list[int]:
    names = read_lines(path, "a name of an image on each line, without extension")
    return [_row(rows, name, path, images) for name in dict.fromkeys(names)]


def _row(rows: Mapping[str, int], name: str, path: Path, images: ImageList) -> int:
    if name not in rows:
        raise ValueError(f"{path}: names {name[:80]!r}, expected an image {name[:80]}.jpg below {images.root}")
    return rows[name]

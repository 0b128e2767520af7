"""ROxford5k and RParis6k, with or without a million distractors, from their files as downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList
from hamlet.retrieval.datasets.benchmark import Benchmark, Pictures, Ranking
from hamlet.retrieval.datasets.files import check_images, find_folder, is_box, load_plain_pickle, read_lines
from hamlet.retrieval.metrics import Scores, revisited_per_query
from hamlet.retrieval.metrics.buildings import REVISITED

NAMES = ("roxford5k", "rparis6k")
_DISTRACTORS = "revisitop1m"


@dataclass(frozen=True)
class Revisited(Benchmark):
    """A revisited Oxford or Paris benchmark (Radenović et al., CVPR 2018).

    Its queries are not in the database.

    Args:
        gnd: for each query lists of database indices under "easy", "hard" and "junk".
    """

    gnd: Sequence[dict[str, list[int]]]

    @property
    def needs_all_queries(self) -> bool:
        return True

    @property
    def main_setups(self) -> tuple[str, ...]:
        return ("medium",)

    @property
    def setups(self) -> tuple[str, ...]:
        return tuple(REVISITED)

    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        right, junk = ([row for kind in kinds for row in self.gnd[query][kind]] for kinds in REVISITED[setup])
        return np.isin(rows, right).astype(np.int8) - np.isin(rows, junk)

    def positives(self, query: int, setup: str) -> int:
        right, _ = REVISITED[setup]
        return sum(len(self.gnd[query][kind]) for kind in right)

    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        return revisited_per_query(ranking.rows, [self.gnd[query] for query in ranking.queries], ks)


def load_revisited(name: str, folder: Path | str, *, distractors: bool = False) -> Revisited:
    """Read ``gnd_<name>.pkl`` and check that every image that it names is in ``jpg/`` beside it.

    The file is looked for in ``folder`` and in ``folder/<name>``. It is read by an unpickler that admits dicts,
    lists, strings and numbers and nothing else, so a hostile file can run no code.

    Args:
        name: "roxford5k" or "rparis6k".
        folder: where it is.
        distractors: append the images that ``revisitop1m.txt`` names, one a line with extension, to the database. The
            list is looked for in ``folder`` and in ``folder/revisitop1m``, its images in ``jpg/`` beside it.

    Raises:
        ValueError: an unknown name; a file or images that are missing; a file that holds anything else than the
            ground truth.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(NAMES)}")
    root = find_folder(folder, name, f"gnd_{name}.pkl")
    path = root / f"gnd_{name}.pkl"
    gnd, database, queries = _check_truth(load_plain_pickle(path), path)
    images = check_images(root / "jpg", [*database, *queries]).root
    parts = [Pictures(f"{name}-database", ImageList(images, database))]
    if distractors:
        parts.append(_load_distractors(Path(folder)))
    return Revisited(
        parts,
        Pictures(f"{name}-queries", ImageList(images, queries), [query["bbx"] for query in gnd]),
        [{kind: query[kind] for kind in ("easy", "hard", "junk")} for query in gnd],
    )


def _load_distractors(folder: Path) -> Pictures:
    root = find_folder(folder, _DISTRACTORS, f"{_DISTRACTORS}.txt")
    path = root / f"{_DISTRACTORS}.txt"
    names = read_lines(path, "a name of an image with its extension on each line")
    if not names:
        raise ValueError(f"{path}: empty, expected a name of an image with its extension on each line")
    return Pictures(_DISTRACTORS, check_images(root / "jpg", names))


def _check_truth(truth: Any, path: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    def refuse(what: str) -> NoReturn:
        raise ValueError(f"{path}: {what}, expected {{gnd, imlist, qimlist}} of a revisited benchmark")

    if not isinstance(truth, dict) or not {"gnd", "imlist", "qimlist"} <= truth.keys():
        refuse("no ground truth in it")
    for key in ("imlist", "qimlist"):
        names = truth[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            refuse(f"{key} is not a list of names")
        if len(set(names)) != len(names):
            refuse(f"{key} has a name twice")
    gnd = truth["gnd"]
    if not isinstance(gnd, list) or len(gnd) != len(truth["qimlist"]):
        refuse("gnd is not a list with an entry for each query")
    for number, query in enumerate(gnd):
        if not isinstance(query, dict) or not isinstance(query.get("bbx"), list) or not is_box(query["bbx"]):
            refuse(f"query {number} has no box [x1, y1, x2, y2]")
        for kind in ("easy", "hard", "junk"):
            if not _are_indices(query.get(kind), len(truth["imlist"])):
                refuse(f"query {number} has no list {kind!r} of indices below {len(truth['imlist'])}")
        labelled = query["easy"] + query["hard"] + query["junk"]
        if len(set(labelled)) != len(labelled):
            refuse(f"query {number} has an image twice in its lists")
    images, queries = ([f"{name}.jpg" for name in truth[key]] for key in ("imlist", "qimlist"))
    return gnd, images, queries


def _are_indices(indices: Any, size: int) -> bool:
    return isinstance(indices, list) and all(type(index) is int and 0 <= index < size for index in indices)

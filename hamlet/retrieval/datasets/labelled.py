"""Any pictures with labels: a folder with a subfolder for each class, or a CSV file beside the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList, list_images
from hamlet.retrieval.datasets.benchmark import Benchmark, Pictures, Ranking
from hamlet.retrieval.datasets.files import check_images, read_rows
from hamlet.retrieval.metrics import Scores, labelled_per_query


@dataclass(frozen=True)
class Labelled(Benchmark):
    """Pictures of which those with the query's label are right.

    Args:
        database_labels: int (database,).
        query_labels: int (queries,).
    """

    database_labels: NDArray[np.int64]
    query_labels: NDArray[np.int64]

    @property
    def main_setups(self) -> tuple[str, ...]:
        return ("all",)

    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        right = (self.database_labels[rows] == self.query_labels[query]).astype(np.int8)
        return np.where(rows == query, np.int8(-1), right) if self.queries is None else right

    def positives(self, query: int, setup: str) -> int:
        return int((self.database_labels == self.query_labels[query]).sum()) - (self.queries is None)

    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        itself = ranking.queries if self.queries is None else None
        labels = self.query_labels[ranking.queries]
        return {"all": labelled_per_query(ranking.rows, self.database_labels, labels, ks, exclude=itself)}


def list_classes(source: Path | str) -> tuple[ImageList, list[str]]:
    """Pictures and the label of each.

    Args:
        source: a folder, where the first subfolder that a picture lies in is its class; or a CSV file with the columns
            ``image`` (a path relative to the file's folder) and ``label``.

    Raises:
        ValueError: no picture, one that lies in no subfolder, a broken file, or pictures that are missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("tower/1.jpg", "bridge/2.jpg"):
    ...         Path(folder, name).parent.mkdir()
    ...         Path(folder, name).touch()
    ...     images, labels = list_classes(folder)
    >>> images.names, labels
    (['bridge/2.jpg', 'tower/1.jpg'], ['bridge', 'tower'])
    """
    if Path(source).is_file():
        rows = _read_labels(Path(source))
        return _images(Path(source), rows), [row.label for row in rows]
    images = list_images(source)
    loose = [name for name in images.names if "/" not in name]
    if loose:
        raise ValueError(f"{source}: {loose[0]!r} lies in no subfolder, expected one folder for each class")
    return images, [name.split("/", 1)[0] for name in images.names]


def load_labelled_folder(folder: Path | str) -> Labelled:
    """A folder whose subfolders are classes; every picture is searched among all others.

    Raises:
        ValueError: as :func:`list_classes`, or no class with two pictures.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "tower").mkdir()
    ...     for name in ("tower/1.jpg", "tower/2.jpg"):
    ...         Path(folder, name).touch()
    ...     load_labelled_folder(folder).database_labels.tolist()
    [0, 0]
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder, expected one with a subfolder for each class")
    return _leave_one_out(*list_classes(folder), folder)


def load_labelled_csv(path: Path | str) -> Labelled:
    """A CSV file of pictures below its folder, with the columns ``image`` and ``label``.

    Where there is a column ``role``, its rows say ``query`` or ``database``, and a picture may be both by two rows;
    otherwise every picture is searched among all others.

    Raises:
        ValueError: a file that is missing or broken, pictures that are missing or outside the file's folder, a picture
            that comes twice in one role, or queries of which none has its label in the database.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.jpg", "b.jpg"):
    ...         Path(folder, name).touch()
    ...     _ = Path(folder, "mine.csv").write_text("image,label,role\\na.jpg,tower,query\\nb.jpg,tower,database\\n")
    ...     benchmark = load_labelled_csv(Path(folder, "mine.csv"))
    >>> benchmark.queries.images.names, benchmark.database[0].images.names
    (['a.jpg'], ['b.jpg'])
    """
    path = Path(path)
    rows = _read_labels(path)
    if not any(row.role for row in rows):
        return _leave_one_out(_images(path, rows), [row.label for row in rows], path)
    parts, labels = {}, {}
    for role in ("database", "query"):
        chosen = [row for row in rows if row.role == role]
        if not chosen:
            raise ValueError(f"{path}: no row with the role {role!r}, expected one at least")
        parts[role] = Pictures(f"csv-{role}", _images(path, chosen))
        labels[role] = [row.label for row in chosen]
    if not set(labels["query"]) & set(labels["database"]):
        raise ValueError(f"{path}: no query has its label in the database, expected some that do")
    _, codes = np.unique([*labels["database"], *labels["query"]], return_inverse=True)
    size = len(labels["database"])
    return Labelled([parts["database"]], parts["query"], codes[:size], codes[size:])


def _leave_one_out(images: ImageList, labels: Sequence[str], source: Path | str) -> Labelled:
    if len(set(labels)) == len(labels):
        raise ValueError(f"{source}: every class has a single image, expected two or more of some")
    _, codes = np.unique(labels, return_inverse=True)
    return Labelled([Pictures("database", images)], None, codes, codes)


class _Row(NamedTuple):
    line: int
    name: str
    label: str
    role: str


def _images(path: Path, rows: Sequence[_Row]) -> ImageList:
    return check_images(path.parent, [row.name for row in rows], path, [row.line for row in rows])


def _read_labels(path: Path) -> list[_Row]:
    """All rows; their roles are all empty or none is."""
    rows: list[_Row] = []
    for line, (image, label, role) in read_rows(path, ("image", "label"), ("role",)):
        if not image or not label:
            raise ValueError(f"{path}, line {line}: an empty image or label, expected both")
        if role not in ("", "query", "database") or bool(role) != bool(rows[0].role if rows else role):
            raise ValueError(f"{path}, line {line}: got the role {role!r}, expected query or database on every row")
        rows.append(_Row(line, PurePosixPath(image).as_posix(), label, role))
    if not rows:
        raise ValueError(f"{path}: no rows, expected an image and its label on each")
    return rows

"""Google Landmarks v2 (Weyand et al., CVPR 2020), from its CSV files and image folders as downloaded.

In ``folder/gldv2``, or in ``folder`` where there is none, lie ``train/``, ``index/`` and ``test/``, each with its
images in ``a/b/c/<id>.jpg`` by the id's first three characters; and the CSV files, there or in ``metadata/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList
from hamlet.retrieval.datasets.benchmark import Benchmark, Pictures, Ranking
from hamlet.retrieval.datasets.files import check_images, read_rows, stem
from hamlet.retrieval.metrics import Scores, landmark_gap, landmark_retrieval_per_query, mean

SPLITS = ("public", "private")
DEPTH = 100
NEIGHBOURS = 5
_ID = re.compile(r"[0-9A-Za-z_-]{3,}")


class LandmarkKind(NamedTuple):
    """What a landmark is, as ``train_label_to_hierarchical.csv`` says it; empty strings where that is not known.

    Attributes:
        supercategory: such as "Church".
        hierarchical_label: such as "church/cathedral".
        natural_or_human_made: "natural" or "human-made".
    """

    supercategory: str
    hierarchical_label: str
    natural_or_human_made: str


@dataclass(frozen=True)
class LandmarkTraining:
    """The training set.

    Args:
        images: its pictures.
        labels: int (images,), the landmark of each.
        hierarchy: for each landmark what it is; empty where there is no such file.
    """

    images: ImageList
    labels: NDArray[np.int64]
    hierarchy: Mapping[int, LandmarkKind]


@dataclass(frozen=True)
class LandmarkRetrieval(Benchmark):
    """The retrieval task.

    Args:
        relevant: for each query the database indices that are right.
        split: for each query "public" or "private".
    """

    relevant: Sequence[Sequence[int]]
    split: NDArray[np.str_]

    @property
    def depth(self) -> int:
        return DEPTH

    @property
    def main_setups(self) -> tuple[str, ...]:
        return SPLITS

    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        return np.isin(rows, self.relevant[query]).astype(np.int8)

    def positives(self, query: int, setup: str) -> int:
        return len(set(self.relevant[query])) if self.split[query] == setup else 0

    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        if max(ks, default=0) > DEPTH:
            raise ValueError(f"ks: got {max(ks)}, expected at most {DEPTH}, as many places as the protocol looks at")
        relevant = [self.relevant[query] for query in ranking.queries]
        scores = landmark_retrieval_per_query(ranking.rows, relevant, ks, depth=DEPTH)
        split = self.split[ranking.queries]
        return {
            name: {measure: np.where(split == name, values, np.nan) for measure, values in scores.items()}
            for name in SPLITS
        }


@dataclass(frozen=True)
class LandmarkRecognition(Benchmark):
    """The recognition task: which landmark of the training set an image shows, and how sure that is.

    The answer is the landmark whose images among the first five found have the largest sum of scores; that sum is how
    sure it is.

    Args:
        labels: int (database,), the landmark of each image.
        truth: for each query the landmarks that it shows, maybe none.
        split: for each query "public" or "private".
    """

    labels: NDArray[np.int64]
    truth: Sequence[frozenset[int]]
    split: NDArray[np.str_]

    @property
    def depth(self) -> int:
        return NEIGHBOURS

    @property
    def main_setups(self) -> tuple[str, ...]:
        return SPLITS

    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        return np.isin(self.labels[rows], list(self.truth[query])).astype(np.int8)

    def positives(self, query: int, setup: str) -> int:
        return 0

    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        """Setup -> "correct", of queries that show a landmark, "landmark" and "score"."""
        landmarks, scores = self._vote(ranking)
        truth = [self.truth[query] for query in ranking.queries]
        right = [landmark in shown for landmark, shown in zip(landmarks, truth, strict=True)]
        correct = np.where([len(shown) > 0 for shown in truth], np.array(right, dtype=np.float64), np.nan)
        values = {"correct": correct, "landmark": landmarks, "score": scores}
        split = self.split[ranking.queries]
        return {
            name: {measure: np.where(split == name, value, np.nan) for measure, value in values.items()}
            for name in SPLITS
        }

    def summary(self, scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
        """Setup -> "gap" and, over the queries that show a landmark, "accuracy"."""
        if self.queries is None:
            raise ValueError("queries: got None, expected the test images")
        ids = [stem(name) for name in self.queries.images.names]
        result = {}
        for name, values in scores.items():
            predicted = np.flatnonzero(~np.isnan(values["landmark"]))
            truth = {ids[query]: self.truth[query] for query in np.flatnonzero(self.split == name).tolist()}
            landmarks = values["landmark"][predicted].astype(np.int64)
            gap = landmark_gap([ids[query] for query in predicted], landmarks, values["score"][predicted], truth)
            result[name] = {"gap": gap, "accuracy": mean(values["correct"])}
        return result

    def _vote(self, ranking: Ranking) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Landmark and score of each query, NaN for one that found nothing."""
        rows, scores = ranking.rows[:NEIGHBOURS], ranking.scores[:NEIGHBOURS].astype(np.float64)
        if not len(rows):
            nothing = np.full(len(ranking.queries), np.nan)
            return nothing, nothing
        landmarks = self.labels[rows]
        # Images that could not be read fill the places of a small database; they have no say.
        read = np.isfinite(scores)
        agree = (landmarks[:, None] == landmarks[None, :]) & read[None, :]
        votes = np.where(read, np.where(agree, scores[None, :], 0.0).sum(axis=1), -np.inf)
        # Of equal sums the one that came first wins.
        best = votes.argmax(axis=0)[None, :]
        chosen = np.take_along_axis(landmarks, best, axis=0)[0].astype(np.float64)
        return chosen, np.take_along_axis(votes, best, axis=0)[0]


def load_landmark_images(split: str, folder: Path | str) -> ImageList:
    """The images that ``index.csv`` or ``test.csv`` lists.

    Raises:
        ValueError: another split, a file that is missing or broken, an id that is none, images that are missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "index/0/a/1").mkdir(parents=True)
    ...     Path(folder, "index/0/a/1/0a1b2c3d4e5f6789.jpg").touch()
    ...     _ = Path(folder, "index.csv").write_text("id\\n0a1b2c3d4e5f6789\\n")
    ...     load_landmark_images("index", folder).names
    ['0/a/1/0a1b2c3d4e5f6789.jpg']
    """
    if split not in ("index", "test"):
        raise ValueError(f"split: got {split!r}, expected index or test")
    path = _table(folder, f"{split}.csv")
    rows = [(line, id) for line, (id,) in read_rows(path, ("id",))]
    return _images(folder, split, [id for _, id in rows], path, [line for line, _ in rows])


def load_landmark_training(folder: Path | str, *, clean: bool = True) -> LandmarkTraining:
    """The training set, from ``train_clean.csv`` or, where ``clean`` is False, ``train.csv``.

    The label hierarchy is read from ``train_label_to_hierarchical.csv`` where that is there.

    Raises:
        ValueError: a file that is missing or broken, an id that is none, images that are missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "train/0/a/1").mkdir(parents=True)
    ...     Path(folder, "train/0/a/1/0a1b2c3d4e5f6789.jpg").touch()
    ...     _ = Path(folder, "train_clean.csv").write_text("landmark_id,images\\n7,0a1b2c3d4e5f6789\\n")
    ...     load_landmark_training(folder).labels.tolist()
    [7]
    """
    ids: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    path = _table(folder, "train_clean.csv" if clean else "train.csv")
    for line, (landmark, images) in read_rows(path, ("landmark_id", "images" if clean else "id")):
        label = _landmark(landmark, path, line)
        for id in images.split():
            ids.append(id)
            labels.append(label)
            lines.append(line)
    pictures = _images(folder, "train", ids, path, lines)
    return LandmarkTraining(pictures, np.array(labels, dtype=np.int64), _hierarchy(folder))


def load_landmark_retrieval(folder: Path | str) -> LandmarkRetrieval:
    """The retrieval task, from ``index.csv`` and ``retrieval_solution_v2.1.csv``.

    Raises:
        ValueError: a file that is missing or broken, an id that is none or not in the index, images that are missing.
    """
    index = load_landmark_images("index", folder)
    rows = {stem(name): row for row, name in enumerate(index.names)}
    path = _table(folder, "retrieval_solution_v2.1.csv")
    ids: list[str] = []
    relevant: list[list[int]] = []
    split: list[str] = []
    lines: list[int] = []
    for line, id, images, usage in _solution(path, "images"):
        if not images.split() or not all(image in rows for image in images.split()):
            raise ValueError(f"{path}, line {line}: got {images[:40]!r}, expected ids of images in index.csv")
        ids.append(id)
        relevant.append([rows[image] for image in images.split()])
        split.append(usage)
        lines.append(line)
    queries = Pictures("gldv2-retrieval-queries", _images(folder, "test", ids, path, lines))
    return LandmarkRetrieval([Pictures("gldv2-index", index)], queries, relevant, np.array(split))


def load_landmark_recognition(folder: Path | str) -> LandmarkRecognition:
    """The recognition task, from ``train_clean.csv`` and ``recognition_solution_v2.1.csv``.

    Raises:
        ValueError: a file that is missing or broken, an id that is none, images that are missing.
    """
    training = load_landmark_training(folder)
    path = _table(folder, "recognition_solution_v2.1.csv")
    ids: list[str] = []
    truth: list[frozenset[int]] = []
    split: list[str] = []
    lines: list[int] = []
    for line, id, landmarks, usage in _solution(path, "landmarks"):
        ids.append(id)
        truth.append(frozenset(_landmark(landmark, path, line) for landmark in landmarks.split()))
        split.append(usage)
        lines.append(line)
    queries = Pictures("gldv2-recognition-queries", _images(folder, "test", ids, path, lines))
    database = Pictures("gldv2-train-clean", training.images)
    return LandmarkRecognition([database], queries, training.labels, truth, np.array(split))


def _root(folder: Path | str) -> Path:
    return Path(folder, "gldv2") if Path(folder, "gldv2").is_dir() else Path(folder)


def _table(folder: Path | str, file: str) -> Path:
    root = _root(folder)
    return root / "metadata" / file if (root / "metadata" / file).is_file() else root / file


def _images(folder: Path | str, split: str, ids: Sequence[str], table: Path, lines: Sequence[int]) -> ImageList:
    """The images of these ids, each of which stands on its line of the table."""
    for id, line in zip(ids, lines, strict=True):
        if not _ID.fullmatch(id):
            raise ValueError(f"{table}, line {line}: got the image {id[:40]!r}, expected an id of letters and digits")
    if not ids:
        raise ValueError(f"{table}: lists no image, expected some")
    return check_images(_root(folder) / split, [f"{id[0]}/{id[1]}/{id[2]}/{id}.jpg" for id in ids], table, lines)


def _solution(path: Path, column: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, id, answer, "public" or "private") of the rows that count."""
    for line, (id, answer, usage) in read_rows(path, ("id", column, "Usage")):
        if usage == "Ignored":
            continue
        if usage.lower() not in SPLITS:
            raise ValueError(f"{path}, line {line}: got Usage {usage!r}, expected Public, Private or Ignored")
        yield line, id, answer, usage.lower()


def _landmark(text: str, path: Path, line: int) -> int:
    # More digits than these are beyond a 64-bit integer.
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{path}, line {line}: got {text!r}, expected the number of a landmark")
    return int(text)


def _hierarchy(folder: Path | str) -> dict[int, LandmarkKind]:
    path = _table(folder, "train_label_to_hierarchical.csv")
    if not path.is_file():
        return {}
    return {
        _landmark(landmark, path, line): LandmarkKind(*kind)
        for line, (landmark, *kind) in read_rows(path, ("landmark_id", *LandmarkKind._fields))
    }

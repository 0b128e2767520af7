"""Accuracy and cost of a model on a benchmark."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn

from hamlet import processes
from hamlet.files import check_writable
from hamlet.models import fingerprint
from hamlet.retrieval.cost import measure_cost
from hamlet.retrieval.datasets import Benchmark, LandmarkRecognition, Pictures, Ranking, load_benchmark
from hamlet.retrieval.datasets.files import read_lines
from hamlet.retrieval.evaluation_report import Found, write_evaluation_report
from hamlet.retrieval.extraction import Extraction, extract
from hamlet.retrieval.metrics import Scores
from hamlet.retrieval.neighbours import blocks, scratch
from hamlet.retrieval.reranking import Step, make_search, parse_steps
from hamlet.retrieval.whitening import Origin, Whitening, load_whitening

# Similarities of a block of queries, the sort of them, and that of the block before stay below a gigabyte.
_BLOCK = 1 << 25


@dataclass(frozen=True)
class Described:
    """Descriptors of pictures: float16 or float32 (n, dim), of which row i belongs to picture ``rows[i]`` of ``count``.

    Those of a database are mapped from a file.
    """

    descriptors: NDArray[Any]
    rows: NDArray[np.int64]
    count: int
    failures: list[tuple[str, str]]


def evaluate(
    model: nn.Module,
    dataset: str,
    data: Path | str,
    *,
    out: Path | str | None = None,
    html: Path | str | None = None,
    crop: bool = True,
    seen: Path | str | None = None,
    whiten: Path | str | None = None,
    rerank: str = "",
    ks: Sequence[int] = (1, 5, 10),
    longest_side: int = 1024,
    scales: Sequence[float] = (1.0,),
    dtype: str = "float32",
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a model on a benchmark.

    Of several processes, as ``torchrun`` starts them, each describes its share; the first alone goes on from there.

    Args:
        model: takes images and gives descriptors, see :func:`hamlet.retrieval.extraction.extract`.
        dataset: one of :data:`hamlet.retrieval.datasets.BENCHMARKS`.
        data: the benchmark's folder as downloaded, or the CSV file of "csv".
        out: folder where the descriptors are kept, so that a killed run resumes; default a temporary one. Arrays that
            are larger than memory may be are put on its disk.
        html: file of a self-contained page that shows what the worst queries found; default none.
        crop: cut the queries to their boxes, where the benchmark has boxes.
        seen: text file with the names of queries whose thing the training set shows, one a line, with extension or
            without; the setups then come a second time, as "SETUP, unseen", without these queries.
        whiten: file of a :class:`hamlet.retrieval.whitening.Whitening` learnt from descriptors of this model, longest
            side and scales.
        rerank: steps for :func:`hamlet.retrieval.reranking.parse_steps`; they see descriptors and nothing else.
        ks: cut-offs of the precision.
        longest_side: images are shrunk to it, never enlarged; the cost is measured on a square of this side.
        scales: see :func:`hamlet.retrieval.extraction.describe`; the cost is that of a single scale.
        dtype, batch_size, workers, progress: as :func:`hamlet.retrieval.extraction.extract`.

    Returns:
        plain data: "dataset", "longest_side", "scales", "dtype", "whitened", "rerank" (steps with all their settings),
        "database" and "queries" (how many), "queries_cropped", "queries_seen" (how many, None without ``seen``),
        "metrics" (setup -> measure -> number, of :mod:`hamlet.retrieval.metrics`), "unreadable" ((name, reason) of
        database images that could not be read: they rank last; where every image is a query, they are none),
        "unreadable_queries" (likewise: they find nothing), and "cost" (of
        :func:`hamlet.retrieval.cost.measure_cost`, the bytes being those of a descriptor as it is searched).

    Raises:
        ValueError: an unknown dataset, missing or broken files, a query that cannot be read in Oxford or Paris, a
            whitening learnt from other descriptors, steps that are not known, a page that cannot be written, several
            processes and no ``out``.
        LeftToFirst: in every process but the first, when all images are described.
    """
    # What can be wrong with the arguments is found out before hours of extraction.
    if html is not None:
        check_writable(html)
    if out is None and processes.count() > 1:
        raise ValueError(f"out: got None, expected a folder that all {processes.count()} processes reach")
    steps = parse_steps(rerank)
    # Any module with a name, a config and weights has a fingerprint.
    origin = Origin(fingerprint(model), longest_side, tuple(scales))  # type: ignore[arg-type]
    whitening = load_whitening(whiten, origin) if whiten is not None else None
    benchmark = load_benchmark(dataset, data)
    unseen = read_unseen(benchmark, seen) if seen is not None else None
    if not crop and benchmark.queries is not None:
        whole = dataclasses.replace(benchmark.queries, name=f"{benchmark.queries.name}-whole", boxes=None)
        benchmark = dataclasses.replace(benchmark, queries=whole)
    settings: dict[str, Any] = {
        "longest_side": longest_side,
        "scales": scales,
        "dtype": dtype,
        "batch_size": batch_size,
        "workers": workers,
        "progress": progress,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out) if out is not None else Path(temporary)
        queries = _describe_queries(model, benchmark, folder, settings)
        database = _describe(model, benchmark.database, folder, settings)
        processes.leave_to_first()
        if not len(database.rows):
            reason = database.failures[0][1]
            raise ValueError(f"{data}: none of {database.count} database images can be read, first: {reason}")
        if whitening is not None:
            database = _whitened(database, whitening, folder)
            queries = _whitened(queries, whitening, folder) if queries is not None else None
        rankings = _rank(benchmark, database, queries or database, steps, folder, progress)
        found = Found(benchmark, (queries or database).count) if html is not None else None
        scores = _scores(benchmark, rankings, (queries or database).count, ks, found)
        descriptor_bytes = database.descriptors.itemsize * database.descriptors.shape[1]
    metrics = benchmark.summary(scores)
    if unseen is not None:
        left = {
            f"{setup}, unseen": {name: np.where(unseen, values, np.nan) for name, values in measures.items()}
            for setup, measures in scores.items()
        }
        metrics |= benchmark.summary(left)
    result = {
        "dataset": dataset,
        "longest_side": longest_side,
        "scales": list(scales),
        "dtype": dtype,
        "whitened": whitening is not None,
        "rerank": [{"name": step.name, **step.settings} for step in steps],
        "database": database.count,
        "queries": queries.count if queries else len(database.rows),
        "queries_cropped": benchmark.queries is not None and benchmark.queries.boxes is not None,
        "queries_seen": None if unseen is None else int((~unseen).sum()),
        "metrics": metrics,
        "unreadable": database.failures,
        "unreadable_queries": queries.failures if queries else [],
        "cost": {**asdict(measure_cost(model, longest_side)), "descriptor_bytes": descriptor_bytes},
    }
    if html is not None and found is not None:
        write_evaluation_report(html, result, scores, found, model)
    return result


def read_unseen(benchmark: Benchmark, path: Path | str) -> NDArray[np.bool_]:
    """Which queries a text file does not name, bool (queries,).

    Raises:
        ValueError: no such file, a name that is no query's, or a recognition task: its answers are what it has seen.
    """
    if isinstance(benchmark, LandmarkRecognition):
        raise ValueError(f"seen: got {path} for a recognition task, expected a retrieval task")
    images = [part.images for part in benchmark.database] if benchmark.queries is None else [benchmark.queries.images]
    names = [name for each in images for name in each.names]
    named = set(read_lines(Path(path), "a name of a query on each line"))
    bare = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    if unknown := sorted(named - {*names, *bare}):
        raise ValueError(f"{path}: names {unknown[0][:80]!r}, expected a query such as {names[0]}")
    return np.array([not named & set(forms) for forms in zip(names, bare, strict=True)])


def _describe_queries(model: nn.Module, benchmark: Benchmark, out: Path, settings: dict[str, Any]) -> Described | None:
    """None where every database image is a query."""
    if benchmark.queries is None:
        return None
    queries = _describe(model, [benchmark.queries], out, settings)
    if queries.failures and benchmark.needs_all_queries:
        name, reason = queries.failures[0]
        raise ValueError(f"{benchmark.queries.images.root / name}: a query that cannot be read ({reason})")
    return queries


def _describe(model: nn.Module, parts: Sequence[Pictures], out: Path, settings: dict[str, Any]) -> Described:
    found: list[Extraction] = []
    rows: list[NDArray[np.int64]] = []
    count = 0
    for part in parts:
        found.append(extract(model, part.images, out / part.name, boxes=part.boxes, **settings))
        rows.append(count + _places(part.images.names, found[-1].ids))
        count += len(part.images)
    failures = [failure for each in found for failure in each.failures]
    described = [each.descriptors for each in found if each.ids] or [np.empty((0, 0), dtype=np.float32)]
    return Described(_joined(described, out), np.concatenate(rows), count, failures)


def _joined(parts: Sequence[NDArray[Any]], folder: Path) -> NDArray[Any]:
    """One array of all rows; of several, on the folder's disk."""
    if len(parts) == 1 or processes.rank() > 0:
        return parts[0]
    joined = scratch((sum(map(len, parts)), parts[0].shape[1]), folder, parts[0].dtype)
    start = 0
    for part in parts:
        for block in blocks(len(part)):
            rows = part[block]
            joined[start : start + len(rows)] = rows
            start += len(rows)
    return joined


def _places(names: Sequence[str], ids: Sequence[str]) -> NDArray[np.int64]:
    """Where the ids, which are the names in their order without those that failed, stand among the names."""
    places: list[int] = []
    for place, name in enumerate(names):
        # A name may come twice, with different boxes.
        if len(places) < len(ids) and ids[len(places)] == name:
            places.append(place)
    return np.array(places, dtype=np.int64)


def _whitened(described: Described, whitening: Whitening, folder: Path) -> Described:
    if not len(described.rows):
        return described
    out = scratch((len(described.rows), len(whitening.projection)), folder)
    return dataclasses.replace(described, descriptors=whitening(described.descriptors, out))


def _rank(
    benchmark: Benchmark,
    database: Described,
    queries: Described,
    steps: Sequence[Step],
    folder: Path,
    progress: bool,
) -> Iterator[Ranking]:
    """What the queries found, block by block, as the similarities of all pairs may not fit into memory."""
    console = Console(stderr=True, quiet=not progress)
    with console.status(f"preparing {', '.join(step.name for step in steps)}" if steps else "preparing"):
        search = make_search(queries.descriptors, database.descriptors, steps, folder)
    size = min(256, max(1, _BLOCK // database.count))
    for start in track(range(0, len(queries.rows), size), "ranking", console=console):
        block = slice(start, start + size)
        similarity = np.full((len(queries.rows[block]), database.count), -np.inf, dtype=np.float32)
        similarity[:, database.rows] = search(block)
        places = min(benchmark.depth or database.count, database.count)
        # A query's places lie together, and are filled one query at a time: no second copy of them all.
        rows = np.empty((len(similarity), places), dtype=np.int64)
        for query, scores in enumerate(similarity):
            rows[query] = best(scores, benchmark.depth)
        yield Ranking(queries.rows[block], rows.T, np.take_along_axis(similarity, rows, axis=1).T)
    if benchmark.queries is not None:
        unread = np.setdiff1d(np.arange(queries.count), queries.rows)
        nothing = np.empty((0, len(unread)))
        yield Ranking(unread, nothing.astype(np.int64), nothing.astype(np.float32))


def best(scores: NDArray[np.float32], depth: int | None = None) -> NDArray[np.int64]:
    """Places of the highest scores, best first; equal ones keep their order, so that two runs agree.

    >>> best(np.array([0.5, 0.9, 0.9, 0.1], dtype=np.float32), 3).tolist()
    [1, 2, 0]
    """
    candidates = np.arange(len(scores))
    if depth is not None and depth < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:depth]]


def _scores(
    benchmark: Benchmark, rankings: Iterator[Ranking], queries: int, ks: Sequence[int], found: Found | None
) -> dict[str, Scores]:
    """Setup -> measure -> (queries,); what a page shows of the rankings is added to ``found``."""
    scores: dict[str, Scores] = {}
    for ranking in rankings:
        if found is not None:
            found.add(ranking)
        for setup, measures in benchmark.per_query(ranking, ks).items():
            for name, values in measures.items():
                whole = scores.setdefault(setup, {}).setdefault(name, np.full(queries, np.nan))
                whole[ranking.queries] = values
    return scores

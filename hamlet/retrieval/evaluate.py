"""Accuracy and cost of a model on a dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hamlet.images import ImageList
from hamlet.retrieval import metrics
from hamlet.retrieval.cost import measure_cost
from hamlet.retrieval.datasets import REVISITED, load_labelled_folder, load_revisited
from hamlet.retrieval.extraction import Extraction, extract

DATASETS = (*REVISITED, "folder")
_FARTHEST = -2.0  # below every inner product of normalised descriptors


def evaluate(
    model: nn.Module,
    dataset: str,
    data_dir: Path | str,
    *,
    out: Path | str | None = None,
    longest_side: int = 1024,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 8,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a model on a dataset.

    Args:
        model: takes images and gives L2-normalised descriptors, see :func:`hamlet.retrieval.extraction.extract`.
        dataset: "roxford5k" or "rparis6k" by the revisited protocol, queries cropped to their boxes; or "folder",
            where a class is a subfolder and every image is searched among all others.
        data_dir: folder of the dataset as downloaded: ``gnd_<dataset>.pkl`` and ``jpg/``, there or in
            ``data_dir/<dataset>``.
        out: folder where the descriptors are kept, so that a killed run resumes; default a temporary one.
        longest_side: images are shrunk to it, never enlarged; the cost is measured on a square of this side.
        ks: cut-offs of the precision.
        batch_size, workers, progress: as :func:`hamlet.retrieval.extraction.extract`.

    Returns:
        plain data: "dataset", "longest_side", "database" and "queries" (how many), "queries_cropped", "metrics" (of
        :func:`hamlet.retrieval.metrics.revisited`, or of ``labelled`` for a folder), "unreadable" ((name, reason) of
        database images that could not be read: they rank last; those of a folder are no queries), and "cost" (of
        :func:`hamlet.retrieval.cost.measure_cost`).

    Raises:
        ValueError: an unknown dataset, missing or broken files, a query that cannot be read.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset: got {dataset!r}, expected one of {', '.join(DATASETS)}")
    settings: dict[str, Any] = {
        "longest_side": longest_side,
        "batch_size": batch_size,
        "workers": workers,
        "progress": progress,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out) if out is not None else Path(temporary)
        measure = _evaluate_folder if dataset == "folder" else _evaluate_revisited
        result = measure(model, dataset, data_dir, folder, ks, settings)
    return {
        "dataset": dataset,
        "longest_side": longest_side,
        **result,
        "cost": asdict(measure_cost(model, longest_side)),
    }


def _evaluate_revisited(
    model: nn.Module, dataset: str, data_dir: Path | str, out: Path, ks: Sequence[int], settings: dict[str, Any]
) -> dict[str, Any]:
    benchmark = load_revisited(dataset, data_dir)
    queries = extract(model, benchmark.queries, out / "queries", boxes=benchmark.boxes, **settings)
    if queries.failures:
        name, reason = queries.failures[0]
        raise ValueError(f"{benchmark.queries.root / name}: a query that cannot be read ({reason})")
    database = _extract_database(model, benchmark.database, out, settings)
    similarity = _similarity(database, benchmark.database, queries.descriptors)
    return {
        "database": len(benchmark.database),
        "queries": len(benchmark.queries),
        "queries_cropped": True,
        "metrics": metrics.revisited(_rank(similarity), benchmark.gnd, ks),
        "unreadable": database.failures,
    }


def _evaluate_folder(
    model: nn.Module, dataset: str, data_dir: Path | str, out: Path, ks: Sequence[int], settings: dict[str, Any]
) -> dict[str, Any]:
    images, labels = load_labelled_folder(data_dir)
    if len(set(labels)) == len(labels):
        raise ValueError(f"{data_dir}: every class has a single image, expected two or more of some")
    found = _extract_database(model, images, out, settings)
    rows = {name: row for row, name in enumerate(images.names)}
    readable = np.array([rows[name] for name in found.ids])
    scores: dict[str, list[NDArray[np.float64]]] = {}
    # In blocks, as the similarities of all pairs of a large folder do not fit into memory.
    for start in range(0, len(readable), 256):
        block = readable[start : start + 256]
        ranks = _rank(_similarity(found, images, found.descriptors[start : start + 256]))
        blocked = metrics.labelled_per_query(ranks, labels, [labels[row] for row in block], ks, exclude=block)
        for name, values in blocked.items():
            scores.setdefault(name, []).append(values)
    return {
        "database": len(images),
        "queries": len(readable),
        "queries_cropped": False,
        "metrics": {name: metrics.mean(np.concatenate(values)) for name, values in scores.items()},
        "unreadable": found.failures,
    }


def _extract_database(model: nn.Module, images: ImageList, out: Path, settings: dict[str, Any]) -> Extraction:
    found = extract(model, images, out / "database", **settings)
    if not found.ids:
        raise ValueError(f"{images.root}: none of {len(images)} images can be read, first: {found.failures[0][1]}")
    return found


def _similarity(found: Extraction, images: ImageList, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """(database, queries), with what has no descriptor farther than everything that has one."""
    rows = {name: row for row, name in enumerate(images.names)}
    similarity = np.full((len(images), len(queries)), _FARTHEST, dtype=np.float32)
    similarity[[rows[name] for name in found.ids]] = found.descriptors @ queries.T
    return similarity


def _rank(similarity: NDArray[np.float32]) -> NDArray[np.int64]:
    # Stable, so that equal images keep the dataset's order and two runs agree.
    return np.argsort(-similarity, axis=0, kind="stable")

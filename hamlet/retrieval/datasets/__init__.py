"""Benchmarks and training sets of image retrieval, read from their own files as downloaded; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hamlet.retrieval.datasets.benchmark import Benchmark, Pictures, Ranking
from hamlet.retrieval.datasets.files import load_plain_pickle
from hamlet.retrieval.datasets.labelled import Labelled, list_classes, load_labelled_csv, load_labelled_folder
from hamlet.retrieval.datasets.landmarks import (
    LandmarkKind,
    LandmarkRecognition,
    LandmarkRetrieval,
    LandmarkTraining,
    load_landmark_images,
    load_landmark_recognition,
    load_landmark_retrieval,
    load_landmark_training,
)
from hamlet.retrieval.datasets.oxford import Oxford, load_oxford
from hamlet.retrieval.datasets.revisited import Revisited, load_revisited

BENCHMARKS: Mapping[str, Callable[[Path | str], Benchmark]] = {
    "oxford5k": partial(load_oxford, "oxford5k"),
    "paris6k": partial(load_oxford, "paris6k"),
    "roxford5k": partial(load_revisited, "roxford5k"),
    "rparis6k": partial(load_revisited, "rparis6k"),
    "roxford5k+1m": partial(load_revisited, "roxford5k", distractors=True),
    "rparis6k+1m": partial(load_revisited, "rparis6k", distractors=True),
    "gldv2-retrieval": load_landmark_retrieval,
    "gldv2-recognition": load_landmark_recognition,
    "folder": load_labelled_folder,
    "csv": load_labelled_csv,
}


def load_benchmark(name: str, data: Path | str) -> Benchmark:
    """A benchmark by name, from its folder as downloaded, or from the CSV file for "csv".

    Raises:
        ValueError: an unknown name, or files that are missing or broken: one line that says what was expected where.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](data)


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Labelled",
    "LandmarkKind",
    "LandmarkRecognition",
    "LandmarkRetrieval",
    "LandmarkTraining",
    "Oxford",
    "Pictures",
    "Ranking",
    "Revisited",
    "list_classes",
    "load_benchmark",
    "load_labelled_csv",
    "load_labelled_folder",
    "load_landmark_images",
    "load_landmark_recognition",
    "load_landmark_retrieval",
    "load_landmark_training",
    "load_oxford",
    "load_plain_pickle",
    "load_revisited",
]

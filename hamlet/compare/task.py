"""What a comparison trains on and how it measures: the demo's photographs, or a folder and a benchmark."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Protocol

from hamlet.models import Model
from hamlet.retrieval.datasets import load_benchmark
from hamlet.retrieval.datasets.benchmark import Benchmark
from hamlet.retrieval.evaluate import evaluate
from hamlet.training import Recipe, TeacherCache, TrainingSet, training_set

Metrics = dict[str, dict[str, float]]
"""Setup -> measure -> number; one setup, ``all``, where a benchmark has no others."""


class Task(Protocol):
    """One training set and one test for all models."""

    description: str
    cost_size: int
    """Height and width of the image whose cost is measured, in pixels."""

    @property
    def training(self) -> TrainingSet: ...

    @property
    def teacher(self) -> TeacherCache | None: ...

    @property
    def test(self) -> str:
        """What is tested on, in a word that is another for another test."""

    @property
    def main_setups(self) -> tuple[str, ...]:
        """Setups by which methods are told apart: the first of them that was measured."""

    def measure(self, model: Model, out: Path) -> Metrics:
        """Accuracy of a trained model; ``out`` may keep what a killed run would do again.

        Of several processes all come here, and all but the first may leave by ``LeftToFirst``.
        """


class BenchmarkTask:
    """A folder of classes to train on, and one of the benchmarks of ``hamlet evaluate``.

    Args:
        recipe: with ``data.root``, and ``data.teacher`` if there is one.
        dataset: one of :data:`hamlet.retrieval.datasets.BENCHMARKS`.
        data: the benchmark's folder or file.
        longest_side: to which test images are shrunk; the cost is measured on a square of it.

    Raises:
        ValueError: no ``data.root``, or a benchmark that is unknown or broken.
    """

    def __init__(
        self, recipe: Recipe, dataset: str, data: Path, *, longest_side: int = 1024, progress: bool = True
    ) -> None:
        if recipe.data.root is None:
            raise ValueError("data.root: missing, expected a folder with a subfolder of pictures for each class")
        # What is wrong with the test is found out before hours of training.
        benchmark = load_benchmark(dataset, data)
        self.main_setups = benchmark.main_setups
        self.test = _named(dataset, benchmark)
        self.recipe, self.dataset, self.data = recipe, dataset, data
        self.cost_size, self.progress = longest_side, progress
        self.description = f"Trained on {Path(recipe.data.root).name}, evaluated on {dataset}."

    @cached_property
    def training(self) -> TrainingSet:
        return training_set(self.recipe, progress=self.progress)

    @cached_property
    def teacher(self) -> TeacherCache | None:
        path = self.recipe.data.teacher
        return None if path is None else TeacherCache.load(path)

    def measure(self, model: Model, out: Path) -> Metrics:
        found = evaluate(
            model,
            self.dataset,
            self.data,
            out=out / "descriptors",
            longest_side=self.cost_size,
            progress=self.progress,
        )
        metrics: Metrics = found["metrics"]
        return metrics


def _named(dataset: str, benchmark: Benchmark) -> str:
    parts = [*benchmark.database, *([] if benchmark.queries is None else [benchmark.queries])]
    names = json.dumps([part.images.names for part in parts])
    return f"{dataset} {hashlib.sha256(names.encode()).hexdigest()[:16]}"

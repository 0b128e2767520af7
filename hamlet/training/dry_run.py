"""What a run would take, from a few of its steps: data, memory and time, before a week is spent on it."""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hamlet.training.data import TrainingSet
from hamlet.training.engine import Engine
from hamlet.training.loop import aligned
from hamlet.training.recipe import Recipe
from hamlet.training.schedule import stage_ends
from hamlet.training.teacher import TeacherCache

WARM_UP, MEASURED = 2, 3
"""Steps, at least. A loader's workers read two batches each ahead: until those are used up, and over as many again as
there are workers, a loader that is slower than the model would not show."""
AHEAD = 2


@dataclass(frozen=True)
class DryRun:
    """What a run would take.

    Args:
        samples, classes, parameters: how many; the parameters with the objective's.
        steps: for each stage how many it has.
        seconds: for each stage the seconds a step of each part (:data:`hamlet.training.timing.PARTS`).
        step_seconds: for each stage the seconds a step from one to the next, with what is in no part.
        memory: bytes: on a GPU the most that was allocated, on the CPU the most that the process held.
        checkpoint: bytes of a checkpoint.
        free: bytes free where checkpoints go.
    """

    samples: int
    classes: int
    parameters: int
    steps: list[int]
    seconds: list[dict[str, float]]
    step_seconds: list[float]
    memory: int
    checkpoint: int
    free: int

    @property
    def total_seconds(self) -> float:
        """Of the whole run, without validation and checkpoints."""
        return sum(count * seconds for count, seconds in zip(self.steps, self.step_seconds, strict=True))


def dry_run(
    model: Any, recipe: Recipe, dataset: TrainingSet, *, out: str | Path, teacher: TeacherCache | None = None
) -> DryRun:
    """Take a few steps of each stage, as training would, and keep nothing.

    With workers that read pictures, as many steps as it takes until what they read ahead is used up.

    ``out`` stays as it is; the model's weights change.

    Args:
        model, recipe, dataset, out, teacher: see :func:`hamlet.training.train`.

    Raises:
        ValueError: what training would refuse at its start, or where there is no room for two checkpoints.
    """
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(model, recipe, dataset, aligned(teacher, dataset), Path(scratch))
        ends = stage_ends(recipe.stages, recipe.steps)
        begins = [0, *ends[:-1]]
        measured = [_measure(engine, begin, end) for begin, end in zip(begins, ends, strict=True)]
        engine.save()
        checkpoint = (Path(scratch) / "checkpoint.pt").stat().st_size if engine.accelerator.is_main_process else 0
    device = engine.accelerator.device
    free = shutil.disk_usage(_existing(Path(out))).free
    if free < 2 * checkpoint:
        raise ValueError(f"out: {out} has {free / 2**20:.0f} MiB free, expected room for two checkpoints")
    return DryRun(
        samples=len(dataset),
        classes=max(dataset.labels) + 1,
        parameters=sum(each.numel() for each in engine.learner.parameters()),
        steps=[end - begin for begin, end in zip(begins, ends, strict=True)],
        seconds=[parts for parts, _ in measured],
        step_seconds=[seconds for _, seconds in measured],
        memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_memory(),
        checkpoint=checkpoint,
        free=free,
    )


def _measure(engine: Engine, begin: int, end: int) -> tuple[dict[str, float], float]:
    """Seconds a step of each part, and from one step to the next, over some of a stage's first steps."""
    workers = engine.recipe.data.workers
    warm_up, measured = max(WARM_UP, AHEAD * workers), max(MEASURED, AHEAD * workers)
    if end - begin < warm_up + measured:
        # A stage that is over before the loader is behind does not wait for it.
        warm_up, measured = WARM_UP, max(MEASURED, end - begin - WARM_UP)
    engine.curriculum.go_to(begin)
    engine.timer.take()
    taken: list[dict[str, float]] = []
    ended: list[float] = []
    while len(taken) < warm_up + measured:
        for samples, images in islice(engine.timer.waited_for(engine.loader), warm_up + measured - len(taken)):
            engine.train_step(samples, images)
            taken.append(engine.timer.take())
            ended.append(time.perf_counter())
    parts = {part: sum(each[part] for each in taken[warm_up:]) / measured for part in taken[0]}
    return parts, (ended[-1] - ended[warm_up - 1]) / measured


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _peak_memory() -> int:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

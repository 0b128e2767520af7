"""What changes over a run, as functions of the step alone: stages, temperature, and the share of samples in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hamlet.training.recipe import CurriculumRecipe, StageRecipe

PURPOSES = ("ties", "order", "views", "model", "classes")


@dataclass(frozen=True)
class Moment:
    """A step of training: the index of its stage, the stage, and the distillation's temperature now."""

    index: int
    stage: StageRecipe
    temperature: float


def chance(seed: int, purpose: str, *key: int) -> np.random.SeedSequence:
    """The root of all chance of one purpose (one of ``PURPOSES``) at one place, such as a step.

    Purposes are kept apart: one shuffle seeded like another can undo it.
    """
    return np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), *key))


def stage_ends(stages: Sequence[StageRecipe], steps: int) -> list[int]:
    """The step (from 0) after the last one of each stage.

    Example:
        >>> stage_ends((StageRecipe(until=0.5), StageRecipe()), 9)
        [5, 9]
    """
    return [math.ceil(stage.until * steps) for stage in stages]


def moment(stages: Sequence[StageRecipe], step: int, steps: int) -> Moment:
    """The stage that step ``step`` of ``steps`` (from 0) belongs to, and the temperature there.

    The temperature goes geometrically from the stage's first value, at its first step, to its second, at its last.

    Example:
        >>> stages = (StageRecipe(until=0.5), StageRecipe(temperature=(4.0, 1.0)))
        >>> [moment(stages, step, 10).index for step in (0, 4, 5, 9)]
        [0, 0, 1, 1]
        >>> [moment(stages, step, 10).temperature for step in (5, 7, 9)]
        [4.0, 2.0, 1.0]

    Source: HAMLET architecture, §4.2 and §4.3.
    """
    ends = stage_ends(stages, steps)
    index = next((i for i, end in enumerate(ends) if step < end), len(stages) - 1)
    first, last = ends[index - 1] if index else 0, ends[index] - 1
    done = (step - first) / (last - first) if last > first else 1.0
    begin, end = stages[index].temperature
    return Moment(index, stages[index], begin ** (1 - done) * end**done)


def pace(recipe: CurriculumRecipe, step: int, steps: int) -> float:
    """The share of the samples, easiest first, that are in use at step ``step`` of ``steps``, in (0, 1].

    With t the progress towards ``until``: linear c + (1 - c) t; root sqrt(c^2 + (1 - c^2) t), which gives new samples
    the same rate of being drawn; step c + (1 - c) floor(t * jumps) / jumps.

    Example:
        >>> [pace(CurriculumRecipe("loss", "linear", start=0.5, until=0.5), step, 100) for step in (0, 25, 50, 99)]
        [0.5, 0.75, 1.0, 1.0]

    Source: Platanios et al., "Competence-based Curriculum Learning" (2019); Hacohen, Weinshall, "On The Power of
    Curriculum Learning" (2019).
    """
    if recipe.difficulty == "none":
        return 1.0
    progress = min(1.0, step / (recipe.until * steps))
    start = recipe.start
    if recipe.pacing == "root":
        return math.sqrt(start**2 + (1 - start**2) * progress)
    if recipe.pacing == "step":
        progress = math.floor(progress * recipe.jumps) / recipe.jumps
    return start + (1 - start) * progress

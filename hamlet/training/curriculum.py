"""Which samples a step trains on: easy ones first, in an order that the seed and the step decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from hamlet.training.recipe import Recipe, StageRecipe
from hamlet.training.schedule import chance, moment, pace, stage_ends

Batch = list[tuple[int, int, int]]
"""(sample, seed of its view, image size) of each place in a batch."""


class Curriculum(Sampler[Batch]):
    """Batches over the easiest samples; the pool of them grows as :func:`hamlet.training.schedule.pace` says.

    Training goes in rounds. At a round's start the samples are ranked by difficulty and the pool is cut; the round is
    one pass over the pool in random order, filled up to whole batches; with several shapes, a pass on average. The
    batches of a round are a function of the recipe, the round's first step and its pool (with difficulty "loss", of the
    losses before it too), so that with :meth:`state_dict` any step can be gone back to, however far ahead a data loader
    has read. A round ends where a stage with other samples per class begins.

    With difficulty "loss", a sample that has not been seen counts as the easiest, so that each is tried early.

    Args:
        labels: the class of each sample.
        recipe: its curriculum, seed, steps, batch size and samples per class.
        difficulty: (n,) for difficulty "teacher" and "file", larger is harder.
        shapes: int (n,), a number for each sample; a batch holds samples of one. None: they are all alike.
        process, processes: which part of each batch to give, of how many.

    Raises:
        ValueError: no samples, a batch that does not divide among the processes, or a teacher's difficulty that is
            missing.

    Example:
        >>> from hamlet.training import load_recipe
        >>> recipe = load_recipe("folder", ["batch_size=2", "data.samples_per_class=1", "curriculum.start=0.5"])
        >>> curriculum = Curriculum([0, 1, 2, 3], recipe)
        >>> [len(batch) for batch in curriculum]  # half of four samples are in use
        [2]

    Source: HAMLET architecture, §4.2.
    """

    def __init__(
        self,
        labels: Sequence[int],
        recipe: Recipe,
        difficulty: Sequence[float] | None = None,
        *,
        shapes: Sequence[int] | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not len(labels):
            raise ValueError("dataset: got no samples, expected at least one")
        if recipe.batch_size % processes:
            raise ValueError(f"batch_size: got {recipe.batch_size}, expected a multiple of the {processes} processes")
        given = recipe.curriculum.difficulty in ("teacher", "file")
        if given and difficulty is None:
            lacks = {"teacher": "no teacher with prototypes", "file": "no difficulty of each sample"}
            kind = recipe.curriculum.difficulty
            raise ValueError(f"curriculum.difficulty: got {kind}, but there is {lacks[kind]}")
        self.labels = np.asarray(labels)
        self.shapes = np.zeros(len(labels), np.int64) if shapes is None else np.asarray(shapes)
        self.recipe = recipe
        self.part = slice(process, None, processes)
        self.step = 0
        self.difficulty = np.asarray(difficulty, float) if given else np.full(len(labels), -np.inf)
        # Equal difficulties, such as those of unseen samples, are ranked at random.
        self.tie_break = np.random.default_rng(chance(recipe.seed, "ties")).permutation(len(labels))
        self._begin_round()

    def __iter__(self) -> Iterator[Batch]:
        """This process's part of the round's batches, from the current step on."""
        first = self.round_start
        if self.step - first >= len(self.round):
            self._begin_round()
            first = self.step
        for place in range(self.step - first, len(self.round)):
            samples = self.round[place]
            seeds = chance(self.recipe.seed, "views", first + place).generate_state(len(samples), np.uint64)
            size = self.recipe.image_size_in(self._stage(first + place))
            # Halved, since torch's generators take signed numbers.
            halves = [int(seed >> np.uint64(1)) for seed in seeds]
            batch = [(int(sample), seed, size) for sample, seed in zip(samples, halves, strict=True)]
            yield batch[self.part]

    def observe(self, samples: Sequence[int], losses: Sequence[float]) -> None:
        """End a step: take note of the losses of its samples, over all processes."""
        self.step += 1
        if self.recipe.curriculum.difficulty != "loss":
            return
        momentum = self.recipe.curriculum.momentum
        for sample, loss in zip(samples, losses, strict=True):
            before = self.difficulty[sample]
            self.difficulty[sample] = loss if np.isneginf(before) else momentum * before + (1 - momentum) * loss

    def go_to(self, step: int) -> None:
        """Begin a round at a step."""
        self.step = step
        self._begin_round()

    def ranking(self) -> NDArray[np.int64]:
        """All samples, easiest first."""
        return np.lexsort((self.tie_break, self.difficulty))

    def drawn(self, samples: Sequence[int]) -> list[int]:
        """How many of these samples are in each tenth of the ranking of this round, the easiest first."""
        tenths = self.place[np.asarray(samples)] * 10 // len(self.labels)
        return np.bincount(tenths, minlength=10).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "round_start": self.round_start,
            "pool": torch.from_numpy(self.pool.copy()),
            "difficulty": torch.from_numpy(self.difficulty.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.round_start = state["step"], state["round_start"]
        self.pool, self.difficulty = state["pool"].numpy().copy(), state["difficulty"].numpy().copy()
        self._fill_round()

    def _begin_round(self) -> None:
        share = pace(self.recipe.curriculum, self.step, self.recipe.steps)
        self.round_start = self.step
        self.pool = self.ranking()[: max(1, round(share * len(self.labels)))]
        self._fill_round()

    def _fill_round(self) -> None:
        """The round's samples: (batches, batch_size); and each sample's place in the pool."""
        generator = np.random.default_rng(chance(self.recipe.seed, "order", self.round_start))
        shapes = self.shapes[self.pool]
        groups = [self.pool[shapes == shape] for shape in np.unique(shapes)]
        counts = self._shares([len(group) for group in groups], generator)
        parts = [self._batches(group, count, generator) for group, count in zip(groups, counts, strict=True) if count]
        batches = generator.permutation(np.concatenate(parts)) if len(groups) > 1 else parts[0]
        self.round = batches[: self._same_sampler()]
        self.place = np.zeros(len(self.labels), np.int64)
        self.place[self.pool] = np.arange(len(self.pool))

    def _shares(self, sizes: Sequence[int], generator: np.random.Generator) -> list[int]:
        """How many batches of the round each shape gets.

        One shape's last batch is filled up. With several, the batches that a shape does not fill are drawn with the
        chance that it fills them: else a rare shape's samples would come far more often than others.
        """
        size = self.recipe.batch_size
        if len(sizes) == 1:
            return [-(-sizes[0] // size)]
        counts = [count // size + int(generator.random() < count % size / size) for count in sizes]
        if not any(counts):
            counts[generator.choice(len(sizes), p=np.array(sizes) / sum(sizes))] = 1
        return counts

    def _batches(self, pool: NDArray[np.int64], batches: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """So many batches of random orders of the pool: (batches, batch_size)."""
        size = self.recipe.batch_size
        per_class = self.recipe.samples_per_class_in(self._stage(self.round_start))
        if per_class:
            samples = _balanced(pool, self.labels[pool], batches * size, per_class, generator)
        else:
            samples = _passes(pool, batches * size, generator)
        return samples.reshape(batches, size)

    def _same_sampler(self) -> int:
        """Steps from the round's start until a stage begins that has other samples per class."""
        recipe, steps = self.recipe, self.recipe.steps
        now = recipe.samples_per_class_in(self._stage(self.round_start))
        for stage, begin in zip(recipe.stages[1:], stage_ends(recipe.stages, steps), strict=False):
            if begin > self.round_start and recipe.samples_per_class_in(stage) != now:
                return begin - self.round_start
        # Beyond the last step there is nothing to change for.
        return len(self.labels)

    def _stage(self, step: int) -> StageRecipe:
        return moment(self.recipe.stages, step, self.recipe.steps).stage


def _passes(items: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` of the items: as many random orders of all of them as it takes, one after another."""
    orders = [generator.permutation(items) for _ in range(-(-count // len(items)))]
    return np.concatenate(orders)[:count]


def _balanced(
    pool: NDArray[np.int64], labels: NDArray[np.int64], count: int, per_class: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """``count`` samples, ``per_class`` of a class at a time: random orders of the classes and of each one's samples."""
    classes = _passes(np.unique(labels), count // per_class, generator)
    samples = np.empty((len(classes), per_class), dtype=np.int64)
    members = dict(_grouped(labels))
    for label, turns in _grouped(classes):
        drawn = _passes(pool[members[label]], len(turns) * per_class, generator)
        samples[turns] = drawn.reshape(-1, per_class)
    return samples.reshape(-1)


def _grouped(labels: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each label, and where it stands, in one pass however many there are."""
    order = labels.argsort(kind="stable")
    names, begins = np.unique(labels[order], return_index=True)
    return zip(names.tolist(), np.split(order, begins[1:]), strict=True)

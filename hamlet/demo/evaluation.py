"""The demo's test: views of instances that training never saw, ranked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hamlet.demo.data import Instance, Views
from hamlet.retrieval import Index
from hamlet.training.recipe import AugmentRecipe

QUERIES = 4
POSITIVES = 10
DISTRACTOR_EVERY = 5
BATCH = 64


@dataclass(frozen=True)
class View:
    """One view of a test instance: its name, its instance's number and its picture, float (3, H, W) in [0, 1]."""

    name: str
    label: int
    image: Tensor


def render_test(
    instances: Sequence[Instance], augment: AugmentRecipe, size: int, seed: int
) -> tuple[list[View], list[View]]:
    """Queries and database: four and ten views of every instance, but no queries for every fifth instance.

    Such an instance only distracts. The views are a function of `seed` and of the instance alone.
    """
    views = Views(instances, augment, size)
    queries, database = [], []
    for index, instance in enumerate(instances):
        seeds = np.random.SeedSequence((seed, index)).generate_state(QUERIES + POSITIVES)
        rendered = [views[index, int(view_seed), size] for view_seed in seeds]
        if (index + 1) % DISTRACTOR_EVERY:
            queries += [View(f"{instance.name}/query-{k}", index, rendered[k]) for k in range(QUERIES)]
        database += [View(f"{instance.name}/{k}", index, rendered[QUERIES + k]) for k in range(POSITIVES)]
    return queries, database


@torch.no_grad()
def describe(model: nn.Module, views: Sequence[View]) -> NDArray[np.float32]:
    """Descriptors of views: float32 (views, dimension)."""
    model.eval()
    images = torch.stack([view.image for view in views])
    return torch.cat([model(batch) for batch in images.split(BATCH)]).float().numpy()


def rank(index: Index, queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Places in the index of all its entries, best first, a column a query: int (database, queries)."""
    places = {name: place for place, name in enumerate(index.ids)}
    _, found = index.search(queries, len(index))
    return np.array([[places[name] for name in names] for names in found]).T

"""The demo as a comparison's task: scikit-image's photographs, half to train on, half to search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hamlet.compare.task import Metrics
from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, Views, instances
from hamlet.demo.evaluation import describe, rank, render_test
from hamlet.demo.teacher import make_teacher
from hamlet.models import Model
from hamlet.processes import leave_to_first
from hamlet.retrieval import Index
from hamlet.retrieval.metrics import labelled
from hamlet.training import Recipe


class DemoTask:
    """See :class:`hamlet.compare.Task`. The test's views are decided by the recipe's seed, whatever seeds train.

    Args:
        recipe: its views, their size and its seed.

    Attributes:
        trained_on, tested_on: the instances.
        queries, database: the views of the test.
    """

    description = "The demo: photographs that scikit-image carries, instances that training never saw."
    main_setups = ("all",)

    def __init__(self, recipe: Recipe) -> None:
        self.test = f"demo, seed {recipe.seed}"
        self.cost_size = recipe.image_size
        self.trained_on = instances(list(TRAIN_PHOTOGRAPHS))
        self.training = Views(self.trained_on, recipe.augment, recipe.image_size)
        self.teacher = make_teacher(self.trained_on)
        self.tested_on = instances(list(TEST_PHOTOGRAPHS))
        self.queries, self.database = render_test(self.tested_on, recipe.augment, recipe.image_size, recipe.seed)

    def measure(self, model: Model, out: Path) -> Metrics:
        """Index the database, in ``out``, search it with the queries, and measure what is found."""
        leave_to_first()
        # Pictures this small are described on the CPU, wherever training left the model.
        model.cpu()
        Index.build(describe(model, self.database), [view.name for view in self.database]).save(out / "test.index")
        labels = [[view.label for view in views] for views in (self.database, self.queries)]
        return {"all": labelled(self.ranks(model, out), *labels)}

    def ranks(self, model: Model, out: Path) -> NDArray[np.int64]:
        """Places of all the database, best first, a column a query, by the index that ``measure`` left in ``out``."""
        return rank(Index.load(out / "test.index"), describe(model, self.queries))

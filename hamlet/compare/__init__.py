"""Several methods trained and evaluated alike: on the same data, for the same steps, from the same seeds."""

from hamlet.compare.plan import comparison_recipes
from hamlet.compare.run import compare, measure_run
from hamlet.compare.task import BenchmarkTask, Task

__all__ = ["BenchmarkTask", "Task", "compare", "comparison_recipes", "measure_run"]

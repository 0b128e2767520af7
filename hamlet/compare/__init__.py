"""Several methods trained and evaluated alike: on the same data, for the same steps, from the same seeds."""

from hamlet.compare.plan import Run, comparison_runs
from hamlet.compare.run import compare, measure_run
from hamlet.compare.task import BenchmarkTask, Task

__all__ = ["BenchmarkTask", "Run", "Task", "compare", "comparison_runs", "measure_run"]

"""Measuring side by side: correctness first, then all contenders in turn, round by round, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench import memory
from bench import yardsticks as measured
from bench.clock import Measure, seconds
from bench.comparison import PEAK, Comparison, Outcome
from bench.rounds import SLOW, Effort, interleave
from bench.runs import Run

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative error of a whole tensor that is still right."""
PROBLEM = 300
"""Characters of an error that are kept."""
PROBE = 1e9
"""Operations of the peak that is timed where a case has no such yardstick, to tell whether the machine was steady."""

QUICK = Effort(rounds=1, seconds=0.0)
FULL = Effort(rounds=25, seconds=1.0)
TINY = Effort(rounds=300, seconds=1.0)
"""Of calls that take microseconds."""


def compare(
    benchmark: Any,
    comparison: Comparison,
    contenders: Mapping[str, Callable[[], Run]],
    expected: Callable[[], list[Tensor]],
    *,
    effort: Effort,
    tolerance: float,
    yardsticks: Mapping[str, Measure] = MappingProxyType({}),
    other_functions: Mapping[str, Callable[[], list[Tensor]]] = MappingProxyType({}),
) -> Comparison:
    """Check every contender's numbers, then time those that are right.

    pytest-benchmark's own figures are those of the first contender that is right, HAMLET as a user gets it unless that
    fails; everybody's go into the JSON as ``extra_info``. Where nobody is right the case is in the JSON all the same.

    Args:
        contenders: each makes what it needs and returns what is timed, which returns the tensors to check.
        expected: the right tensors, in float64.
        tolerance: relative error of the whole tensor that is still right.
        yardsticks: each returns the seconds of one round; the table knows a name by its first word.
        other_functions: what is right for a contender that computes something near, but not the same.
    """
    runs: dict[str, Run] = {}
    warm: dict[str, float] = {}
    right = expected()
    for name, make in contenders.items():
        outcome = Outcome(name)
        comparison.outcomes.append(outcome)
        try:
            with memory.limited():
                run = make()
                found = run()
                outcome.problem = _wrong(
                    found, other_functions[name]() if name in other_functions else right, tolerance
                )
                if outcome.problem is None:
                    comparison.dtype = comparison.dtype or str(found[0].dtype).removeprefix("torch.")
                    outcome.memory, warm[name] = _weigh(run, SLOW * next(iter(warm.values()), float("inf")))
                    runs[name] = run
        except Exception as error:
            first = _first(error)
            outcome.problem = " ".join(f"{type(first).__name__}: {first}".split())[:PROBLEM]
        found = None
    del right
    benchmark.group = comparison.group
    if runs:
        _time(benchmark, comparison, runs, effort.shares({name: warm[name] for name in runs}), yardsticks)
    else:
        benchmark.pedantic(lambda: None)
    benchmark.extra_info.update(comparison.plain())
    return comparison


def _first(error: BaseException) -> BaseException:
    """The contender's own error, where PyTorch's compiler says only that it met one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _wrong(found: list[Tensor], right: list[Tensor], tolerance: float) -> str | None:
    errors = [_relative_error(got, want) for got, want in zip(found, right, strict=True)]
    return None if all(error <= tolerance for error in errors) else f"wrong by {max(errors):.1e}"


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return float("inf")
    error = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
    return float(error) if error == error else float("inf")


def _weigh(run: Run, patience: float) -> tuple[int | None, float]:
    """Peak memory of the second run, the first that has nothing left to prepare, and its seconds.

    Or the third's, if that takes less and the second took no longer than ``patience``.
    """
    took: list[float] = []
    found = memory.peak(lambda: took.append(seconds(run)))
    if took[0] <= patience:
        took.append(seconds(run))
    # A graph's replay allocates nothing: its memory is that of the run that it holds.
    as_written = getattr(run, "as_written", None)
    return (memory.peak(as_written) if as_written else found), min(took)


def _time(
    benchmark: Any,
    comparison: Comparison,
    runs: Mapping[str, Run],
    shares: Mapping[str, int],
    yardsticks: Mapping[str, Measure],
) -> None:
    """Fill in the seconds of every outcome and yardstick, and how steady the machine was meanwhile."""
    taken = interleave(benchmark, runs, shares, {PEAK: measured.peak(PROBE), **yardsticks})
    for outcome in comparison.outcomes:
        outcome.seconds = taken.get(outcome.name, [])
        once = outcome.rounds == 1 < max(shares.values())
        outcome.remark = ", ".join(filter(None, ["1 round" * once, getattr(runs.get(outcome.name), "remark", "")]))
    comparison.yardsticks = [Outcome(name, taken[name]) for name in yardsticks if name in taken]
    if taken:
        steady = Outcome(PEAK, taken[PEAK])
        comparison.spread = steady.p80 / steady.p20 if steady.p20 else None

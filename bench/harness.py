"""Measuring side by side: correctness first, then all contenders in turn, round by round, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from bench import memory
from bench.clock import seconds
from bench.comparison import Comparison, Outcome
from bench.runs import Run

Measure = Callable[[], float]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative error of a whole tensor that is still right."""
PROBLEM = 300
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: HAMLET at most ``rounds`` rounds and at least ``least``, as many as ``seconds`` allow.

    Any other contender takes part in as many of these as ``seconds`` allow, at least one, spread evenly over them.
    """

    rounds: int
    seconds: float
    least: int = 5

    def of(self, once: float, least: int = 1) -> int:
        return max(min(least, self.rounds), min(self.rounds, int(self.seconds / max(once, 1e-9))))


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

    pytest-benchmark times the first contender, HAMLET as a user gets it; every other one is timed in its ``setup``,
    which it calls before each round, so that one disturbance of the machine meets all of them alike. Theirs go into the
    JSON as ``extra_info``.

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
                problem = _wrong(run(), other_functions[name]() if name in other_functions else right, tolerance)
                if problem is None:
                    outcome.memory, warm[name] = _weigh(run)
        except Exception as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:PROBLEM]
        if problem is None:
            runs[name] = run
        else:
            outcome.problem = problem
    del right
    first, *others = contenders
    if first in runs:
        _interleave(benchmark, comparison, first, {name: runs[name] for name in (first, *others) if name in runs},
                    warm, effort, yardsticks)  # fmt: skip
    benchmark.extra_info.update(comparison.plain())
    return comparison


def _wrong(found: list[Tensor], right: list[Tensor], tolerance: float) -> str | None:
    errors = [_relative_error(got, want) for got, want in zip(found, right, strict=True)]
    return None if all(error <= tolerance for error in errors) else f"wrong by {max(errors):.1e}"


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return float("inf")
    error = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
    return float(error) if error == error else float("inf")


def _weigh(run: Run) -> tuple[int | None, float]:
    """Peak memory and seconds of the second run, the first that has nothing left to prepare."""
    took: list[float] = []
    found = memory.peak(lambda: took.append(seconds(run)))
    # A graph's replay allocates nothing: its memory is that of the run that it holds.
    as_written = getattr(run, "as_written", None)
    return (memory.peak(as_written) if as_written else found), took[0]


def _interleave(
    benchmark: Any,
    comparison: Comparison,
    first: str,
    runs: Mapping[str, Run],
    warm: Mapping[str, float],
    effort: Effort,
    yardsticks: Mapping[str, Measure],
) -> None:
    rounds = effort.of(warm[first], effort.least)
    shares = {name: min(rounds, effort.of(warm[name])) for name in runs if name != first}
    timed = {outcome.name: outcome for outcome in comparison.outcomes}
    measured = [Outcome(name) for name in yardsticks]
    done = 0

    def time_others() -> None:
        nonlocal done
        for name, share in shares.items():
            if (done + 1) * share // rounds > done * share // rounds:
                timed[name].seconds.append(seconds(runs[name]))
        for yardstick in measured:
            yardstick.seconds.append(yardsticks[yardstick.name]())
        done += 1

    benchmark.group = comparison.group
    benchmark.pedantic(runs[first], setup=time_others, rounds=rounds)
    comparison.yardsticks = measured
    if benchmark.stats is not None:  # None with --benchmark-disable, which checks and times nothing
        timed[first].seconds = list(benchmark.stats.stats.data)

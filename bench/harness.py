"""Measuring side by side: correctness first, then all contenders in turn, round by round, in one process."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]
Measure = Callable[[], float]
HAMLET = "HAMLET"
BEATEN, ROUNDS_OF_THE_BEATEN = 5, 3
"""A peer this many times slower than another is timed in so many rounds only: it can no longer be the strongest."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""Relative error of a whole tensor that is still right."""


@dataclass
class Outcome:
    """What became of one contender: its seconds, or why there are none."""

    name: str
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[round(share * (len(ordered) - 1))]

    def plain(self) -> dict[str, Any]:
        if not self.seconds:
            return {"problem": self.problem}
        times = {"median": self.median, "p20": self.quantile(0.2), "p80": self.quantile(0.8)}
        return {**times, "rounds": len(self.seconds)}


@dataclass
class Comparison:
    """One case: its title, the arithmetic and the bytes that it cannot do without, its contenders and its yardsticks.

    A yardstick is timed as the contenders are, and does not compete: it is what their times are a share of.
    """

    group: str
    title: str
    operations: float
    bytes: float
    outcomes: list[Outcome] = field(default_factory=list)
    yardsticks: list[Outcome] = field(default_factory=list)

    @property
    def timed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.seconds]

    @property
    def strongest_peer(self) -> Outcome | None:
        peers = [outcome for outcome in self.timed if not outcome.name.startswith(HAMLET)]
        return min(peers, key=lambda outcome: outcome.median, default=None)

    def plain(self) -> dict[str, Any]:
        """For the JSON of pytest-benchmark."""
        return {
            "group": self.group,
            "title": self.title,
            "operations": self.operations,
            "bytes": self.bytes,
            "contenders": {outcome.name: outcome.plain() for outcome in self.outcomes},
            "yardsticks": {yardstick.name: yardstick.plain() for yardstick in self.yardsticks},
        }


def compare(
    benchmark: Any,
    comparison: Comparison,
    contenders: Mapping[str, Callable[[], Run]],
    expected: Callable[[], list[Tensor]],
    *,
    rounds: int,
    tolerance: float,
    yardsticks: Mapping[str, Measure] = MappingProxyType({}),
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
    """
    right = expected()
    runs: dict[str, Run] = {}
    for name, make in contenders.items():
        outcome = Outcome(name)
        comparison.outcomes.append(outcome)
        try:
            run = make()
            found = run()
        except Exception as error:
            outcome.problem = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        errors = [_relative_error(got, want) for got, want in zip(found, right, strict=True)]
        if all(error <= tolerance for error in errors):
            runs[name] = run
        else:
            outcome.problem = f"wrong by {max(errors):.1e}"
    first, *others = contenders
    timed = {outcome.name: outcome for outcome in comparison.outcomes}

    def beaten(name: str) -> bool:
        fastest = min(min(timed[other].seconds, default=float("inf")) for other in others)
        return len(timed[name].seconds) >= ROUNDS_OF_THE_BEATEN and min(timed[name].seconds) > BEATEN * fastest

    def time_others() -> None:
        for name in others:
            if name in runs and not beaten(name):
                timed[name].seconds.append(seconds(runs[name]))
        for yardstick in comparison.yardsticks:
            yardstick.seconds.append(yardsticks[yardstick.name]())

    if first in runs:
        comparison.yardsticks = [Outcome(name) for name in yardsticks]
        benchmark.group = comparison.group
        benchmark.pedantic(runs[first], setup=time_others, rounds=rounds, warmup_rounds=1)
        for outcome in (*(timed[name] for name in others), *comparison.yardsticks):
            # The first of each belongs to the warm-up round.
            del outcome.seconds[:1]
        timed[first].seconds = list(benchmark.stats.stats.data)
    benchmark.extra_info.update(comparison.plain())
    return comparison


def _relative_error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return float("inf")
    error = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
    return float(error) if error == error else float("inf")


def seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def forward(function: Callable[..., Tensor], tensors: list[Tensor]) -> Run:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return [function(*tensors)]

    return run


def forward_backward(function: Callable[..., Tensor], tensors: list[Tensor], incoming: Tensor) -> Run:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]

    def run() -> list[Tensor]:
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))]

    return run


def machine() -> str:
    """One line: what was measured on, and what was measured."""
    commit = _git("rev-parse", "--short", "HEAD") or "no commit"
    dirty = ", dirty tree" if _git("status", "--porcelain") else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{device}, {capability}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"Python {platform.python_version()}; {commit}{dirty}"
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

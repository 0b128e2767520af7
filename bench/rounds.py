"""Rounds of timing: in each, every yardstick and then every contender whose turn it is, another one first each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.clock import Measure, hide_launches, seconds

SLOW = 20
"""Times as slow as HAMLET: such a contender is timed in one round."""
FASTEST = 2
"""So many peers, the fastest, are timed in as many rounds as HAMLET at least."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: at most ``rounds`` rounds, as many as ``seconds`` allow, and no fewer than the least.

    The least is ``least`` for HAMLET and the two fastest others, and ``least_of_others`` for the rest. A slower
    contender's rounds are spread evenly over HAMLET's.
    """

    rounds: int
    seconds: float
    least: int = 5
    least_of_others: int = 3

    def shares(self, warm: Mapping[str, float]) -> dict[str, int]:
        """In how many rounds each takes part: the first, which all others are held against, in all of them."""
        (first, reference), *others = warm.items()
        fastest = sorted((took, name) for name, took in others)[:FASTEST]
        found = {first: self._of(reference, self.least)}
        for name, took in others:
            least = self.least if (took, name) in fastest else self.least_of_others
            wanted = 1 if took > SLOW * reference else self._of(took, least)
            found[name] = min(wanted, found[first])
        return found

    def _of(self, once: float, least: int) -> int:
        return min(self.rounds, max(least, int(self.seconds / max(once, 1e-9))))


def interleave(
    benchmark: Any,
    runs: Mapping[str, Callable[[], Any]],
    shares: Mapping[str, int],
    yardsticks: Mapping[str, Measure],
) -> dict[str, list[float]]:
    """Seconds of every yardstick and run, in each of its rounds; of none with --benchmark-disable.

    pytest-benchmark times the first run. Everything else is timed in the ``setup`` that it calls before each round, so
    that one disturbance of the machine meets all of them alike.
    """
    first = next(iter(runs))
    if benchmark.disabled:
        benchmark.pedantic(runs[first])
        return {}
    rounds = shares[first]
    taken: dict[str, list[float]] = {name: [] for name in (*yardsticks, *runs)}

    def until_the_first() -> Iterator[None]:
        for done in range(rounds):
            for name, measure in yardsticks.items():
                taken[name].append(measure())
            due = [name for name in runs if (done + 1) * shares[name] // rounds > done * shares[name] // rounds]
            start = done % len(due)
            for name in due[start:] + due[:start]:
                if name == first:
                    yield
                else:
                    taken[name].append(seconds(runs[name]))

    turns = until_the_first()

    def setup() -> None:
        next(turns)
        hide_launches()

    benchmark.pedantic(runs[first], setup=setup, rounds=rounds)
    next(turns, None)  # those that came after it in the last round
    return taken | {first: list(benchmark.stats.stats.data)}

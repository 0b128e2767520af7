"""One case and what became of each contender: the data that is shown, written to JSON, and read from there again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HAMLET = "HAMLET"
PEAK = "peak of arithmetic"
COPY = "copy of the bytes"
LIMITS = (PEAK, COPY)
STEADY = 1.3
"""The 80th percentile of the peak's time over its 20th, in the rounds of a case that nothing else disturbed."""


@dataclass
class Outcome:
    """What became of one contender: its seconds in each round, or why there are none.

    ``memory`` is what one run added to the process at its peak, in bytes; None where that was not measured. ``remark``
    says what sets its timing apart from the others'.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None
    memory: int | None = None
    remark: str = ""
    summary: dict[str, float] = field(default_factory=dict)
    """median, p20, p80 and rounds, of an outcome that was read from a file, where the single rounds are not kept."""

    @property
    def measured(self) -> bool:
        return bool(self.seconds or self.summary)

    @property
    def median(self) -> float:
        return self.summary["median"] if self.summary else statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        return self.summary["p20"] if self.summary else self._quantile(0.2)

    @property
    def p80(self) -> float:
        return self.summary["p80"] if self.summary else self._quantile(0.8)

    @property
    def rounds(self) -> int:
        return int(self.summary["rounds"]) if self.summary else len(self.seconds)

    @property
    def ours(self) -> bool:
        return self.name.startswith(HAMLET)

    def _quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[round(share * (len(ordered) - 1))]

    def plain(self) -> dict[str, Any]:
        if not self.measured:
            return {"problem": self.problem}
        times = {"median": self.median, "p20": self.p20, "p80": self.p80, "rounds": self.rounds}
        rounded = {name: float(f"{time:.6g}") for name, time in times.items()}
        return rounded | {"memory": self.memory, "remark": self.remark}

    @classmethod
    def from_plain(cls, name: str, plain: Mapping[str, Any]) -> Outcome:
        if "median" not in plain:
            return cls(name, problem=plain["problem"])
        times = {key: plain[key] for key in ("median", "p20", "p80", "rounds")}
        return cls(name, summary=times, memory=plain["memory"], remark=plain["remark"])


@dataclass(frozen=True)
class Loss:
    """A contender that does a case in less time than HAMLET as a user gets it: a peer, or another way of HAMLET's own.

    ``ratio`` is its time over HAMLET's, below 1; 0 where HAMLET has no right result.
    """

    case: str
    winner: str
    ratio: float


@dataclass
class Comparison:
    """One case: the arithmetic and the bytes that it cannot do without, its contenders and its yardsticks.

    A yardstick is timed as the contenders are, and does not compete: it is what their times are a share of.

    Args:
        operations: floating-point operations, a multiply-add counting as two; 0 where nobody could count them.
        bytes: of the inputs and the outputs, each read or written once.
        items: how many of what is done, such as {"images": 32}: its speed is so many a second.
        at: where the case lies on a curve, such as {"pairs": 0.25} of the adaptive one.
        limits: names of the yardsticks that it cannot be faster than; the slowest of them is its limit.
        note: what else was found, which differs from run to run and so is no part of the name.
        dtype: of the first result.
        spread: p80 / p20 of the peak's time in the same rounds: how steady the machine was.
    """

    group: str
    title: str
    operations: float = 0
    bytes: float = 0
    items: dict[str, int] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    yardsticks: list[Outcome] = field(default_factory=list)
    limits: Sequence[str] = LIMITS
    note: str = ""
    dtype: str = ""
    spread: float | None = None

    @property
    def name(self) -> str:
        return f"{self.group}: {self.title}"

    @property
    def timed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.measured]

    @property
    def fastest(self) -> Outcome | None:
        return _fastest(self.timed)

    @property
    def hamlet(self) -> Outcome | None:
        """HAMLET as a user gets it, who names no backend: the first contender of ours; None where that failed."""
        chosen = next((outcome for outcome in self.outcomes if outcome.ours), None)
        return chosen if chosen and chosen.measured else None

    @property
    def failed(self) -> bool:
        """Whether HAMLET, as a user gets it, gave an error or wrong numbers."""
        return self.hamlet is None

    @property
    def strongest_peer(self) -> Outcome | None:
        return _fastest([outcome for outcome in self.timed if not outcome.ours])

    @property
    def ratio(self) -> float | None:
        """The strongest peer's time over HAMLET's: above 1 HAMLET is faster; 0 where it failed and a peer did not."""
        return self._ratio_to(self.strongest_peer)

    @property
    def losses(self) -> list[Loss]:
        """To the strongest peer, and to the fastest of HAMLET's own other ways, which should have been chosen."""
        others = [outcome for outcome in self.timed if outcome.ours and outcome is not self.hamlet]
        found = ((winner, self._ratio_to(winner)) for winner in (self.strongest_peer, _fastest(others)))
        return [
            Loss(self.name, winner.name, ratio) for winner, ratio in found if winner and ratio is not None and ratio < 1
        ]

    @property
    def limit(self) -> float | None:
        """Seconds that the case cannot go below, such as its arithmetic at the peak or its bytes at a copy's speed."""
        return max((found.median for found in self.yardsticks if found.name in self.limits), default=None)

    @property
    def noisy(self) -> bool:
        """Whether something else disturbed the machine while the case was timed."""
        return self.spread is not None and self.spread > STEADY

    def _ratio_to(self, winner: Outcome | None) -> float | None:
        if winner is None:
            return None
        return 0.0 if self.hamlet is None else winner.median / self.hamlet.median

    def plain(self) -> dict[str, Any]:
        """For ``extra_info`` in pytest-benchmark's JSON."""
        hamlet, peer = self.hamlet, self.strongest_peer
        return {
            "group": self.group,
            "title": self.title,
            "items": self.items,
            "at": self.at,
            "operations": self.operations,
            "bytes": self.bytes,
            "limits": list(self.limits),
            "note": self.note,
            "dtype": self.dtype,
            "spread": self.spread,
            "hamlet": hamlet and hamlet.name,
            "strongest_peer": peer and peer.name,
            "ratio": self.ratio,
            "limit": self.limit,
            "contenders": {outcome.name: outcome.plain() for outcome in self.outcomes},
            "yardsticks": {yardstick.name: yardstick.plain() for yardstick in self.yardsticks},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Comparison:
        kept = ("group", "title", "operations", "bytes", "items", "at", "limits", "note", "dtype", "spread")
        return cls(
            **{name: plain[name] for name in kept},
            outcomes=[Outcome.from_plain(*item) for item in plain["contenders"].items()],
            yardsticks=[Outcome.from_plain(*item) for item in plain["yardsticks"].items()],
        )


def _fastest(outcomes: Sequence[Outcome]) -> Outcome | None:
    return min(outcomes, key=lambda outcome: outcome.median, default=None)

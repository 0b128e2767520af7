"""One case and what became of each contender: the data that is shown, written to JSON, and read from there again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HAMLET = "HAMLET"
PEAK = "peak of arithmetic"
COPY = "copy of the bytes"
LIMITS = (PEAK, COPY)


@dataclass
class Outcome:
    """What became of one contender: its seconds in each round, or why there are none.

    ``memory`` is what one run added to the process at its peak, in bytes; None where that was not measured.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None
    memory: int | None = None
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
        return {name: float(f"{time:.6g}") for name, time in times.items()} | {"memory": self.memory}

    @classmethod
    def from_plain(cls, name: str, plain: Mapping[str, Any]) -> Outcome:
        if "median" not in plain:
            return cls(name, problem=plain["problem"])
        times = {key: plain[key] for key in ("median", "p20", "p80", "rounds")}
        return cls(name, summary=times, memory=plain["memory"])


@dataclass
class Comparison:
    """One case: the arithmetic and the bytes that it cannot do without, its contenders and its yardsticks.

    A yardstick is timed as the contenders are, and does not compete: it is what their times are a share of.

    Args:
        operations: floating-point operations, a multiply-add counting as two; 0 where nobody could count them.
        bytes: of the inputs and the outputs, each read or written once.
        items: how many of what is done, such as {"images": 32}: its speed is so many a second.
        at: where the case lies on a curve, such as {"pairs": 0.25} of the adaptive one.
    """

    group: str
    title: str
    operations: float = 0
    bytes: float = 0
    items: dict[str, int] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    yardsticks: list[Outcome] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.group}: {self.title}"

    @property
    def timed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.measured]

    @property
    def fastest(self) -> Outcome | None:
        return min(self.timed, key=lambda outcome: outcome.median, default=None)

    @property
    def best(self) -> Outcome | None:
        """HAMLET's fastest backend."""
        ours = [outcome for outcome in self.timed if outcome.ours]
        return min(ours, key=lambda outcome: outcome.median, default=None)

    @property
    def strongest_peer(self) -> Outcome | None:
        peers = [outcome for outcome in self.timed if not outcome.ours]
        return min(peers, key=lambda outcome: outcome.median, default=None)

    @property
    def ratio(self) -> float | None:
        """The strongest peer's time over HAMLET's: above 1 HAMLET is faster."""
        if self.best is None or self.strongest_peer is None:
            return None
        return self.strongest_peer.median / self.best.median

    @property
    def limit(self) -> float | None:
        """Seconds that the case cannot go below: its arithmetic at the peak or its bytes at a copy's speed."""
        return max((found.median for found in self.yardsticks if found.name in LIMITS), default=None)

    def plain(self) -> dict[str, Any]:
        """For ``extra_info`` in pytest-benchmark's JSON."""
        best, peer = self.best, self.strongest_peer
        return {
            "group": self.group,
            "title": self.title,
            "items": self.items,
            "at": self.at,
            "operations": self.operations,
            "bytes": self.bytes,
            "best": best and best.name,
            "strongest_peer": peer and peer.name,
            "ratio": self.ratio,
            "limit": self.limit,
            "contenders": {outcome.name: outcome.plain() for outcome in self.outcomes},
            "yardsticks": {yardstick.name: yardstick.plain() for yardstick in self.yardsticks},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Comparison:
        return cls(
            **{name: plain[name] for name in ("group", "title", "operations", "bytes", "items", "at")},
            outcomes=[Outcome.from_plain(*item) for item in plain["contenders"].items()],
            yardsticks=[Outcome.from_plain(*item) for item in plain["yardsticks"].items()],
        )

"""Why HAMLET loses where it does: ``reasons.yaml``, read and held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from bench.comparison import Loss

REASONS = Path(__file__).parent / "reasons.yaml"
NO_REASON = "no reason given yet"


@dataclass(frozen=True)
class Reason:
    """Why HAMLET loses the cases that ``case`` names, down to a ratio of ``least``.

    ``case`` is a whole name or a pattern with ``*``; so is ``winner``, of the contender that the reason is about.
    """

    case: str
    least: float
    reason: str
    winner: str = "*"

    def explains(self, loss: Loss) -> bool:
        named = fnmatchcase(loss.case, self.case) and fnmatchcase(loss.winner, self.winner)
        return named and loss.ratio >= self.least


def reasons() -> list[Reason]:
    """Raises ValueError where the file is not a list of what a reason has."""
    try:
        found = [Reason(**each) for each in yaml.safe_load(REASONS.read_text(encoding="utf-8")) or []]
    except (TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{REASONS.name}: expected a list of case, least, reason, and perhaps winner: {error}"
        ) from error
    if wrong := [each.case for each in found if not isinstance(each.least, float | int) or not 0 <= each.least < 1]:
        raise ValueError(f"{REASONS.name}: expected a least ratio from 0 to below 1 of {'; '.join(wrong)}")
    return found


def reason(loss: Loss) -> str:
    return next((each.reason for each in reasons() if each.explains(loss)), NO_REASON)


def unexplained(losses: Iterable[Loss]) -> list[str]:
    """The losses that no reason covers, in words."""
    known = reasons()
    return [
        f"{loss.case} ({loss.ratio:.3f} of {loss.winner}'s speed)"
        for loss in losses
        if not any(each.explains(loss) for each in known)
    ]


def stale(cases: Iterable[str]) -> list[str]:
    """The reasons whose pattern is the name of none of the cases."""
    cases = list(cases)
    return [each.case for each in reasons() if not any(fnmatchcase(case, each.case) for case in cases)]

"""Runs as pytest-benchmark writes them, read again: what was measured on, and every comparison."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.comparison import Comparison, Loss
from hamlet.files import replacing

KEPT = Path(__file__).parent / "results"
"""Committed runs, a folder each, named by date and device."""
RUN = "run.json"


@dataclass(frozen=True)
class Results:
    """One run, perhaps made in parts, on a ``machine`` (:mod:`bench.machine`) with a ``commit``'s code."""

    machine: dict[str, Any]
    commit: dict[str, Any]
    date: str
    comparisons: list[Comparison]
    plain: dict[str, Any]
    """The same as pytest-benchmark's JSON, without the single rounds."""

    @property
    def line(self) -> str:
        return f"{machine.line(self.machine, self.commit)}; {self.date}"

    @property
    def name(self) -> str:
        """Of the folder that it is kept in."""
        device = re.sub(r"[^a-z0-9]+", "-", self.machine["device"].lower()).strip("-")
        return f"{self.date}-{self.machine['kind']}-{device}"

    @property
    def losses(self) -> list[Loss]:
        return sorted((loss for found in self.comparisons for loss in found.losses), key=lambda loss: loss.ratio)

    @property
    def noisy(self) -> list[str]:
        """What pytest calls the cases that something else disturbed."""
        cases = zip(self.plain["benchmarks"], self.comparisons, strict=True)
        return [case["fullname"] for case, found in cases if found.noisy]


def read(*paths: Path) -> Results:
    """Read one run, or the parts of one: a later file's case takes the place of an earlier one's.

    Raises:
        ValueError: a file that is no run of bench/, or parts of different machines or commits.
    """
    parts = [_load(path) for path in paths]
    first, last = parts[0], parts[-1]
    for path, part in zip(paths, parts, strict=True):
        for what in ("machine_info", "commit_info"):
            if _identity(part[what]) != _identity(first[what]):
                raise ValueError(f"{path}: its {what} is not that of {paths[0]}, expected parts of one run")
    cases = {
        case["fullname"]: case for part in parts for case in part["benchmarks"] if "contenders" in case["extra_info"]
    }
    plain = {**last, "benchmarks": [_without_rounds(case) for case in cases.values()]}
    return Results(
        last["machine_info"]["hamlet"],
        last["commit_info"],
        last["datetime"][:10],
        [Comparison.from_plain(case["extra_info"]) for case in cases.values()],
        plain,
    )


def kept() -> list[Results]:
    """The newest committed run of every device, by name."""
    newest: dict[str, Results] = {}
    for path in sorted(KEPT.glob(f"*/{RUN}")):
        found = read(path)
        newest[found.machine["device"]] = found
    return [newest[device] for device in sorted(newest)]


def write(results: Results, path: Path) -> None:
    """In pytest-benchmark's own form, so that its ``--benchmark-compare`` and ``py.test-benchmark compare`` read it."""
    with replacing(path) as file:
        file.write(json.dumps(results.plain, indent=1).encode() + b"\n")


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = "hamlet" in found["machine_info"] and {"commit_info", "datetime", "benchmarks"} <= found.keys()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{path}: not a JSON file of `pytest bench/ --benchmark --benchmark-json=FILE`")
    return found


def _identity(info: dict[str, Any]) -> Any:
    return info["hamlet"] if "hamlet" in info else (info["id"], info["dirty"])


def _without_rounds(case: dict[str, Any]) -> dict[str, Any]:
    return {**case, "stats": {name: value for name, value in case["stats"].items() if name != "data"}}

"""What every benchmark is to `hamlet evaluate`: pictures to describe, and a protocol that scores rankings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList
from hamlet.retrieval.metrics import Scores, mean


@dataclass(frozen=True)
class Pictures:
    """Pictures whose descriptors are kept together.

    Args:
        name: what to call them; a folder of their descriptors bears it.
        images: where they are.
        boxes: for each picture (left, top, right, bottom) in pixels, to be cut out first; None to take them whole.
    """

    name: str
    images: ImageList
    boxes: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Ranking:
    """What some queries found.

    Args:
        queries: int (block,), which of the benchmark's queries they are.
        rows: int (places, block), database images, the best first; no places for queries that could not be described.
        scores: float32 (places, block), descending.
    """

    queries: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Benchmark(ABC):
    """A database, queries, and what is right.

    Args:
        database: its parts, one after the other; a database image's number counts through all of them.
        queries: None where every database image is a query among all others.
    """

    database: Sequence[Pictures]
    queries: Pictures | None

    @property
    def depth(self) -> int | None:
        """How many places of a ranking the protocol looks at; None for all."""
        return None

    @property
    def needs_all_queries(self) -> bool:
        """Whether a query that cannot be read is an error; otherwise it finds nothing."""
        return False

    @property
    @abstractmethod
    def main_setups(self) -> tuple[str, ...]:
        """Setups by whose first measure queries are told good from bad: the first of them that has an answer."""

    @property
    def setups(self) -> tuple[str, ...]:
        """All setups."""
        return self.main_setups

    @abstractmethod
    def verdicts(self, query: int, rows: NDArray[np.int64], setup: str) -> NDArray[np.int8]:
        """For database images what they are to a query under a setup: 1 right, 0 wrong, -1 neither."""

    @abstractmethod
    def positives(self, query: int, setup: str) -> int:
        """How many are right; 0 where the setup has no answer to the query, or the protocol knows no recall."""

    def picture(self, row: int) -> tuple[ImageList, str]:
        """The images that a database image is one of, and its name among them."""
        start = 0
        for part in self.database:
            if row < start + len(part.images):
                return part.images, part.images.names[row - start]
            start += len(part.images)
        raise ValueError(f"row: got {row}, expected a number below the {start} database images")

    @abstractmethod
    def per_query(self, ranking: Ranking, ks: Sequence[int]) -> dict[str, Scores]:
        """Setup -> measure -> (block,); NaN for a query that the setup has no answer to."""

    def summary(self, scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
        """Setup -> measure -> one number, from the values of all queries, in their order."""
        return {setup: {name: mean(values) for name, values in each.items()} for setup, each in scores.items()}

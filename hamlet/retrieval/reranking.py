"""What comes between descriptors and scores, as a user writes it: ``dba,alpha-qe:k=10:alpha=3,diffusion``.

Every step is a function of descriptors alone, so none can look at a ground truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamlet.retrieval import diffusion, expansion
from hamlet.retrieval.diffusion import diffuse, neighbour_graph
from hamlet.retrieval.expansion import augment_database, expand_queries
from hamlet.retrieval.neighbours import inner_products, scratch

# Step: its settings, with the values that they have unless others are given.
SETTINGS: Mapping[str, Mapping[str, int | float]] = {
    "dba": {"k": 10, "alpha": 3.0},
    "alpha-qe": {"k": 10, "alpha": 3.0},
    "diffusion": {"k": 50, "query_k": 10, "alpha": 0.99},
}

_CHECKS: Mapping[str, Callable[..., None]] = {
    "dba": expansion.check_settings,
    "alpha-qe": expansion.check_settings,
    "diffusion": diffusion.check_settings,
}

Search = Callable[[slice], NDArray[np.float32]]


@dataclass(frozen=True)
class Step:
    """A step's name, one of :data:`SETTINGS`, and all its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def parse_steps(text: str) -> list[Step]:
    """Steps from their names, in the order in which they are to happen, each with settings after colons or none.

    Raises:
        ValueError: a step or setting that is not known, a value that is no number or out of range, a step that comes
            twice, or one after diffusion, which gives scores and no descriptors.

    >>> parse_steps("alpha-qe:k=5,diffusion")[0]
    Step(name='alpha-qe', settings={'k': 5, 'alpha': 3.0})
    """
    steps = [_parse_step(part.strip()) for part in text.split(",") if part.strip()]
    names = [step.name for step in steps]
    if len(set(names)) != len(names):
        raise ValueError(f"rerank: got {text!r}, expected each step once")
    if "diffusion" in names[:-1]:
        raise ValueError(f"rerank: got {text!r}, expected diffusion last, as it gives scores and no descriptors")
    return steps


def make_search(
    queries: NDArray[Any], database: NDArray[Any], steps: Sequence[Step], folder: Path | str | None = None
) -> Search:
    """A function from a slice of the queries to their scores, float32 (block, database), higher is better.

    Args:
        queries: float16 or float32 (queries, dim), L2-normalised.
        database: float16 or float32 (database, dim), L2-normalised.
        steps: in the order in which they happen. ``dba`` changes the database for what follows; ``alpha-qe`` the
            queries; ``diffusion`` takes the place of inner products.
        folder: on whose disk the changed database goes; default that for temporary files.

    >>> rows = np.eye(3, dtype=np.float32)
    >>> make_search(rows[:2], rows, parse_steps("alpha-qe:k=1"))(slice(1, 2)).tolist()
    [[0.0, 1.0, 0.0]]
    """
    graph = None
    settings: dict[str, Any] = {}
    # Where no query could be described there is nothing to prepare for.
    for step in steps if len(queries) else ():
        settings = dict(step.settings)
        if step.name == "dba":
            database = augment_database(database, **settings, out=scratch(database.shape, folder))
        elif step.name == "alpha-qe":
            queries = expand_queries(queries, database, **settings)
        else:
            graph = neighbour_graph(database, k=settings.pop("k"))
    if graph is not None:
        return lambda block: diffuse(queries[block], database, graph, **settings)
    return lambda block: inner_products(queries[block], database)


def _parse_step(text: str) -> Step:
    name, *assignments = text.split(":")
    if name not in SETTINGS:
        raise ValueError(f"rerank: got {name!r}, expected one of {', '.join(SETTINGS)}")
    settings = dict(SETTINGS[name])
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in settings:
            raise ValueError(f"rerank: got {assignment!r} for {name}, expected {' or '.join(settings)} and a value")
        try:
            settings[key] = type(settings[key])(value)
        except ValueError:
            kind = "a whole number" if isinstance(settings[key], int) else "a number"
            raise ValueError(f"rerank: got {assignment!r} for {name}, expected {kind}") from None
    # Now, not after hours of extraction.
    try:
        _CHECKS[name](**settings)
    except ValueError as error:
        raise ValueError(f"rerank: {name}, {error}") from None
    return Step(name, settings)

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from hamlet.retrieval import reranking
from hamlet.retrieval.diffusion import diffuse, neighbour_graph
from hamlet.retrieval.expansion import augment_database, expand_queries
from hamlet.retrieval.reranking import SETTINGS, Step, make_search, parse_steps


def unit(count: int, dim: int, seed: int) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_parsing() -> None:
    assert parse_steps("") == []
    assert parse_steps("alpha-qe, diffusion") == [Step(name, SETTINGS[name]) for name in ("alpha-qe", "diffusion")]
    assert parse_steps("dba:alpha=2:k=7,diffusion:query_k=3") == [
        Step("dba", {"k": 7, "alpha": 2.0}),
        Step("diffusion", {"k": 50, "query_k": 3, "alpha": 0.99}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qe", "rerank: got 'qe', expected one of dba, alpha-qe, diffusion"),
        ("diffusion,alpha-qe", "expected diffusion last"),
        ("dba,dba:k=2", "expected each step once"),
        ("dba:n=2", "rerank: got 'n=2' for dba, expected k or alpha and a value"),
        ("dba:k=2.5", "rerank: got 'k=2.5' for dba, expected a whole number"),
        ("dba:k=0", "rerank: dba, k: got 0, expected at least 1"),
        ("alpha-qe:alpha=inf", "rerank: alpha-qe, alpha: got inf, expected at least 0 and finite"),
        ("diffusion:query_k=0", "rerank: diffusion, query_k: got 0, expected at least 1"),
        ("diffusion:alpha=1", "rerank: diffusion, alpha: got 1.0, expected at least 0 and below 1"),
        ("dba:alpha", "rerank: got 'alpha' for dba, expected a number"),
    ],
)
def test_what_is_not_known_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_steps(text)


def test_steps_are_those_functions_in_that_order() -> None:
    queries, database = unit(5, 6, 0), unit(30, 6, 1)

    def search(steps: str) -> np.ndarray[Any, Any]:
        return make_search(queries, database, parse_steps(steps))(slice(1, 4))

    assert np.array_equal(search(""), queries[1:4] @ database.T)
    expanded = expand_queries(queries, database, k=4, alpha=2)[1:4]
    assert np.array_equal(search("alpha-qe:k=4:alpha=2"), expanded @ database.T)
    augmented = augment_database(database, k=3, alpha=1)
    # Expansion looks at the database as it was before dba, or after it.
    assert np.array_equal(search("alpha-qe:k=4:alpha=2,dba:k=3:alpha=1"), expanded @ augmented.T)
    later = expand_queries(queries, augmented, k=4, alpha=2)[1:4]
    assert np.array_equal(search("dba:k=3:alpha=1,alpha-qe:k=4:alpha=2"), later @ augmented.T)
    graph = neighbour_graph(database, k=5)
    found = search("alpha-qe:k=4:alpha=2,diffusion:k=5:query_k=2:alpha=0.9")
    assert np.array_equal(found, diffuse(expanded, database, graph, query_k=2, alpha=0.9))


def test_no_step_takes_anything_but_descriptors_and_numbers() -> None:
    taken = {
        name: parameter.annotation
        for function in (augment_database, expand_queries, neighbour_graph, diffuse, make_search)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    assert taken.keys() == {"database", "queries", "graph", "steps", "k", "alpha", "query_k", "out", "folder"}
    assert not any("datasets" in name or "metrics" in name for name in vars(reranking))

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hamlet.retrieval.diffusion import diffuse, neighbour_graph


def unit(count: int, dim: int, seed: int) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def dense_graph(database: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """The graph by definition: a pair is joined where each is among the other's k nearest."""
    size = len(database)
    similarity = database.astype(np.float64) @ database.T
    near = []
    for own in range(size):
        others = sorted((other for other in range(size) if other != own), key=lambda other: -similarity[own, other])
        near.append(set(others[:k]))
    weights = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if j in near[i] and i in near[j]:
                weights[i, j] = max(similarity[i, j], 0) ** 3
    sums = weights.sum(axis=1)
    for i in range(size):
        for j in range(size):
            if weights[i, j]:
                weights[i, j] /= np.sqrt(sums[i] * sums[j])
    return weights


@pytest.mark.parametrize("k", [1, 4, 100])
def test_graph_by_definition(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hamlet.retrieval.neighbours.BLOCK", 16)
    database = unit(50, 5, 0)
    found = neighbour_graph(database, k=k).toarray()
    assert np.allclose(found, dense_graph(database, k), atol=1e-6)
    assert np.allclose(found, found.T)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_scores_solve_the_system(alpha: float) -> None:
    queries, database = unit(3, 5, 1), unit(40, 5, 0)
    graph = neighbour_graph(database, k=6)
    found = diffuse(queries, database, graph, query_k=4, alpha=alpha)
    system = np.eye(40) - alpha * dense_graph(database, 6)
    for query, scores in zip(queries, found, strict=True):
        similarity = query.astype(np.float64) @ database.T
        start = np.zeros(40)
        for row in np.argsort(-similarity)[:4]:
            start[row] = max(similarity[row], 0) ** 3
        solution = np.linalg.solve(system, start)
        reached = solution > 1e-12
        assert np.allclose(scores[reached], solution[reached], rtol=1e-4, atol=1e-5)
        assert np.allclose(scores[~reached], similarity[~reached] - 2, atol=1e-6)


def test_a_chain_leads_where_similarity_does_not() -> None:
    # On the circle, from 0 degrees on by steps of 10; something apart is nearer to the query than the chain's end.
    angles = np.radians([0, 10, 20, 30, 40, 50, 60, 70, -45])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query = np.array([[1.0, 0.0]])
    plain = (query @ database.T)[0]
    assert plain[8] > plain[7]
    scores = diffuse(query, database, neighbour_graph(database, k=2), query_k=1)[0]
    assert scores[7] > scores[8]
    assert scores[8] == pytest.approx(plain[8] - 2)


def test_bad_input() -> None:
    database = unit(4, 3, 0)
    graph = neighbour_graph(database, k=2)
    with pytest.raises(ValueError, match="k: got 0"):
        neighbour_graph(database, k=0)
    with pytest.raises(ValueError, match=r"queries: got shape \(2, 4\), expected \(n, 3\)"):
        diffuse(unit(2, 4, 0), database, graph)
    with pytest.raises(ValueError, match=r"graph: got shape \(4, 4\), expected one row and column for each of 3"):
        diffuse(database, database[:3], graph)
    with pytest.raises(ValueError, match="query_k: got 0"):
        diffuse(database, database, graph, query_k=0)
    with pytest.raises(ValueError, match=r"alpha: got 1, expected at least 0 and below 1"):
        diffuse(database, database, graph, alpha=1)

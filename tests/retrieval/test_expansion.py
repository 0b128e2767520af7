from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hamlet.retrieval.expansion import augment_database, expand_queries, without_itself


def unit(count: int, dim: int, seed: int) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def expand_one(query: np.ndarray[Any, Any], others: list[np.ndarray[Any, Any]], k: int, alpha: float) -> Any:
    """Mean of the query and its nearest, weighed, one after the other."""
    nearest = sorted(others, key=lambda other: -float(query @ other))[:k]
    total = query.astype(np.float64)
    for other in nearest:
        similarity = float(query @ other)
        if similarity > 0:
            total = total + similarity**alpha * other
    return total / np.linalg.norm(total)


@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (5, 3.0), (5, 0.0), (1000, 2.0)])
def test_expansion_agrees_with_a_loop(k: int, alpha: float) -> None:
    queries, database = unit(7, 6, 0), unit(40, 6, 1)
    found = expand_queries(queries, database, k=k, alpha=alpha)
    assert found.dtype == np.float32
    expected = [expand_one(query, list(database), k, alpha) for query in queries]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (5, 3.0), (1000, 2.0)])
def test_augmentation_agrees_with_a_loop(k: int, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hamlet.retrieval.neighbours.BLOCK", 16)
    database = unit(40, 6, 1)
    expected = [
        expand_one(row, [other for place, other in enumerate(database) if place != own], k, alpha)
        for own, row in enumerate(database)
    ]
    assert np.allclose(augment_database(database, k=k, alpha=alpha), expected, atol=1e-6)


def test_descriptors_opposite_to_the_query_weigh_nothing() -> None:
    queries, database = np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0], [-0.6, 0.8]])
    assert expand_queries(queries, database, k=2, alpha=0.0).tolist() == [[1, 0]]
    assert expand_queries(queries, database, k=2, alpha=2.0).tolist() == [[1, 0]]


def test_equal_descriptors_may_hide_one_from_its_own_neighbours() -> None:
    rows = np.array([[0, 1], [1, 0], [0, 1]])
    similarity, kept = without_itself(np.ones((3, 2), dtype=np.float32), rows, np.array([0, 1, 2]))
    assert kept.tolist() == [[1], [0], [0]]
    assert similarity.shape == (3, 1)
    same = np.repeat(unit(1, 4, 0), 30, axis=0)
    assert np.allclose(augment_database(same, k=3), same, atol=1e-6)


def test_a_single_descriptor_stays() -> None:
    assert np.allclose(augment_database(unit(1, 4, 0)), unit(1, 4, 0))


def test_bad_input() -> None:
    rows = unit(3, 4, 0)
    with pytest.raises(ValueError, match=r"queries: got shape \(3, 4\), expected \(n, 5\)"):
        expand_queries(rows, unit(3, 5, 0))
    with pytest.raises(ValueError, match=r"database: got shape \(0, 4\)"):
        expand_queries(rows, rows[:0])
    with pytest.raises(ValueError, match="database: got int64, expected floating point"):
        augment_database(np.ones((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="database: got NaN or infinity"):
        augment_database(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="k: got 0, expected at least 1"):
        augment_database(rows, k=0)
    with pytest.raises(ValueError, match="alpha: got nan, expected at least 0"):
        expand_queries(rows, rows, alpha=float("nan"))

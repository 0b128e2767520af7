from __future__ import annotations

import numpy as np
import pytest

from hamlet.retrieval import Index
from hamlet.retrieval.recall import check_recall


def test_against_plain_loops() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 12), dtype=np.float32)
    ids = [f"{row}.jpg" for row in range(500)]
    index = Index.build(rows, ids, "IVF16,Flat")
    check = check_recall(index, rows, ids, queries=500)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)
    _, found = index.search(rows, 101)
    for k in (1, 10, 100):
        shares = []
        for row in range(500):
            others = [id for id in found[row] if id != ids[row]][:k]
            shares.append(len({ids[column] for column in nearest[row, :k]} & set(others)) / k)
        assert check.recall[k] == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0.1 < check.recall[100] < 1
    assert check.queries == 500
    assert check.queries_per_second > 0
    assert check.exact_queries_per_second > 0


def test_copies_may_come_in_any_order() -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32), 60, axis=0)
    ids = [str(row) for row in range(240)]
    order = np.random.default_rng(1).permutation(240)
    index = Index.build(rows[order], [ids[row] for row in order])
    assert check_recall(index, rows, ids).recall == {1: 1.0, 10: 1.0, 100: 1.0}


def test_few() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert check_recall(Index.build(rows, ["a", "b", "c"]), rows, ["a", "b", "c"]).recall == {1: 1.0}
    with pytest.raises(ValueError, match="at least two"):
        check_recall(Index.build(rows[:1], ["a"]), rows[:1], ["a"])

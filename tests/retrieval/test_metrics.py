from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamlet.retrieval.metrics import labelled, labelled_per_query, revisited, revisited_per_query

SETUPS = {
    "easy": (["easy"], ["junk", "hard"]),
    "medium": (["easy", "hard"], ["junk"]),
    "hard": (["hard"], ["junk", "easy"]),
}


def loop(ranking: Sequence[int], truth: dict[str, list[int]], setup: str, ks: Sequence[int]) -> dict[str, float]:
    """The protocol as one would do it by hand: walk down the list, step over junk, note where positives stand."""
    positives = [index for kind in SETUPS[setup][0] for index in truth[kind]]
    junk = [index for kind in SETUPS[setup][1] for index in truth[kind]]
    if not positives:
        return {"map": math.nan, **{f"mp@{k}": math.nan for k in ks}}
    place, places = 0, []
    for index in ranking:
        if index in junk:
            continue
        if index in positives:
            places.append(place)
        place += 1
    area = 0.0
    for found, place in enumerate(places):
        precision_before = 1.0 if place == 0 else found / place
        precision_here = (found + 1) / (place + 1)
        area += (precision_before + precision_here) / 2 / len(positives)
    result = {"map": area}
    for k in ks:
        depth = min(places[-1] + 1, k)
        result[f"mp@{k}"] = sum(place < depth for place in places) / depth
    return result


def test_worked_by_hand() -> None:
    # Database: 0, 1 easy; 2 hard; 3 junk; 4, 5 nothing. Ranking: 3 0 4 2 1 5.
    gnd = [{"easy": [0, 1], "hard": [2], "junk": [3]}]
    found = revisited(np.array([[3], [0], [4], [2], [1], [5]]), gnd, ks=(1, 2, 5))
    # Easy, without 3 and 2: 0 4 1 5, positives at 0 and 2: ((1 + 1) + (1/2 + 2/3)) / 4.
    assert found["easy"]["map"] == pytest.approx((2 + 7 / 6) / 4)
    assert found["easy"]["mp@1"] == 1
    assert found["easy"]["mp@2"] == 0.5
    assert found["easy"]["mp@5"] == pytest.approx(2 / 3)  # the last positive is third
    # Medium, without 3: 0 4 2 1 5, positives at 0, 2, 3: ((1 + 1) + (1/2 + 2/3) + (2/3 + 3/4)) / 6.
    assert found["medium"]["map"] == pytest.approx((2 + 7 / 6 + 17 / 12) / 6)
    assert found["medium"]["mp@5"] == 0.75
    # Hard, without 3, 0, 1: 4 2 5, the positive at 1: (0 + 1/2) / 2.
    assert found["hard"] == pytest.approx({"map": 0.25, "mp@1": 0, "mp@2": 0.5, "mp@5": 0.5})


def test_queries_without_a_positive_leave_the_average() -> None:
    gnd = [{"easy": [], "hard": [0], "junk": []}, {"easy": [1], "hard": [], "junk": [0]}]
    ranks = np.array([[0, 0], [1, 2], [2, 1]])
    found = revisited(ranks, gnd, ks=(1,))
    assert found["easy"] == {"map": 0.25, "mp@1": 0.0}  # of the second query alone: 2 before 1
    assert found["hard"] == {"map": 1.0, "mp@1": 1.0}
    per_query = revisited_per_query(ranks, gnd, ks=(1,))
    assert np.isnan(per_query["easy"]["map"]).tolist() == [True, False]
    assert math.isnan(revisited(ranks[:, :1], gnd[:1])["easy"]["map"])


def test_perfect_and_worst_ranking() -> None:
    gnd = [{"easy": [7, 8], "hard": [9], "junk": [0, 1]}]
    best = revisited(np.array([0, 9, 1, 8, 7, 2, 3, 4, 5, 6])[:, None], gnd)
    assert best["medium"] == {"map": 1.0, "mp@1": 1.0, "mp@5": 1.0, "mp@10": 1.0}
    worst = revisited(np.arange(10)[:, None], gnd)
    # Five negatives (2 to 6) stand before: places 5, 6, 7.
    expected = ((0 + 1 / 6) + (1 / 6 + 2 / 7) + (2 / 7 + 3 / 8)) / 6
    assert worst["medium"]["map"] == pytest.approx(expected)
    assert worst["medium"]["mp@1"] == 0


def test_positives_that_the_ranking_leaves_out_are_never_found() -> None:
    gnd = [{"easy": [0, 1], "hard": [], "junk": []}]
    found = revisited(np.array([[0], [2]]), gnd, ks=(1, 10))
    assert found["easy"] == {"map": 0.5, "mp@1": 1.0, "mp@10": 0.1}
    assert revisited(np.array([[2]]), gnd, ks=(1,))["easy"] == {"map": 0.0, "mp@1": 0.0}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_agrees_with_the_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    queries = data.draw(st.integers(1, 4))
    columns, gnd = [], []
    for _ in range(queries):
        columns.append(data.draw(st.permutations(range(size))))
        kinds = data.draw(st.lists(st.sampled_from(["easy", "hard", "junk", "none"]), min_size=size, max_size=size))
        gnd.append({kind: [i for i in range(size) if kinds[i] == kind] for kind in ("easy", "hard", "junk")})
    found = revisited_per_query(np.array(columns).T, gnd, ks=(1, 3, 10))
    for setup in SETUPS:
        for query in range(queries):
            expected = loop(columns[query], gnd[query], setup, (1, 3, 10))
            got = {name: values[query] for name, values in found[setup].items()}
            assert got == pytest.approx(expected, nan_ok=True)


def test_a_million_images_and_seventy_queries_in_seconds() -> None:
    size, queries = 1_000_000, 70
    generator = np.random.default_rng(0)
    column = generator.permutation(size).astype(np.int32)
    ranks = np.stack([np.roll(column, 1000 * query) for query in range(queries)], axis=1)
    gnd = []
    for _ in range(queries):
        chosen = generator.choice(size, 300, replace=False).tolist()
        gnd.append({"easy": chosen[:100], "hard": chosen[100:200], "junk": chosen[200:]})
    start = time.perf_counter()
    found = revisited(ranks, gnd)
    assert time.perf_counter() - start < 20
    # 200 positives among a million, in random places.
    assert 0 < found["medium"]["map"] < 0.01


BAD = {
    "one axis": (np.arange(3), "ranks: got int64"),
    "floats": (np.zeros((3, 1)), "ranks: got float64"),
    "another number of queries": (np.zeros((3, 2), dtype=int), "with 1 queries"),
    "negative": (np.array([[-1], [0], [1]]), "from 0"),
    "repeated": (np.array([[0], [0], [1]]), "column 0 holds an index twice"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_ranks(kind: str) -> None:
    ranks, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        revisited(ranks, [{"easy": [0], "hard": [], "junk": []}])


def test_bad_ground_truth() -> None:
    ranks = np.array([[0], [1]])
    with pytest.raises(ValueError, match="query 0 has no 'hard'"):
        revisited(ranks, [{"easy": [0], "junk": []}])
    with pytest.raises(ValueError, match="index in two lists"):
        revisited(ranks, [{"easy": [0], "hard": [], "junk": [0]}])
    with pytest.raises(ValueError, match="expected a database index"):
        revisited(ranks, [{"easy": [-1], "hard": [], "junk": []}])
    with pytest.raises(ValueError, match="ks: got"):
        revisited(ranks, [{"easy": [0], "hard": [], "junk": []}], ks=(0,))


def test_labelled_by_hand() -> None:
    database = ["tower", "bridge", "tower", "tower"]
    # First: tower bridge tower tower; second: bridge last; third: nothing relevant.
    ranks = np.array([[0, 0, 0], [1, 2, 1], [2, 3, 2], [3, 1, 3]])
    found = labelled_per_query(ranks, database, ["tower", "bridge", "church"], ks=(1, 2))
    assert found["map"][:2] == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, 1 / 4])
    assert found["p@1"][:2].tolist() == [1, 0]
    assert found["p@2"][:2].tolist() == [0.5, 0]
    assert all(np.isnan(values[2]) for values in found.values())
    assert labelled(ranks, database, ["tower", "bridge", "church"], ks=(1,))["p@1"] == 0.5


def test_labelled_leaves_the_query_out() -> None:
    labels = np.array([0, 0, 1, 1])
    # Every query finds itself first, then: 1 has its partner next, 2 has it last.
    ranks = np.array([[1, 2], [0, 0], [2, 1], [3, 3]])
    found = labelled(ranks, labels, labels[[1, 2]], ks=(1, 3), exclude=np.array([1, 2]))
    assert found["map"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["p@1"] == 0.5
    assert found["p@3"] == pytest.approx(1 / 3)
    alone = labelled(np.array([[0], [1]]), [5, 6], [5], exclude=[0])
    assert math.isnan(alone["map"])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_labelled_agrees_with_a_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 15))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    ranking = data.draw(st.permutations(range(size)))
    query = data.draw(st.integers(0, size - 1))
    candidates = [index for index in ranking if index != query]
    hits = [labels[index] == labels[query] for index in candidates]
    found = labelled(np.array(ranking)[:, None], labels, [labels[query]], ks=(1, 4), exclude=[query])
    if not any(hits):
        assert math.isnan(found["map"])
        return
    precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
    assert found["map"] == pytest.approx(sum(precisions) / len(precisions))
    assert found["p@4"] == pytest.approx(sum(hits[:4]) / 4)


def test_labelled_bad_input() -> None:
    with pytest.raises(ValueError, match="expected below the 2 database labels"):
        labelled([[2]], [0, 1], [0])
    with pytest.raises(ValueError, match="holds an index twice"):
        labelled([[1], [1]], [0, 1], [0])
    with pytest.raises(ValueError, match="exclude: got"):
        labelled([[0], [1]], [0, 1], [0], exclude=[0, 1])

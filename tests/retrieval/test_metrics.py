from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hamlet.retrieval.metrics import (
    labelled,
    labelled_per_query,
    landmark_gap,
    landmark_retrieval,
    landmark_retrieval_per_query,
    oxford,
    oxford_per_query,
    revisited,
    revisited_per_query,
)

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
    original = oxford(ranks, [{"good": each["easy"], "ok": each["hard"], "junk": each["junk"]} for each in gnd])
    by_label = labelled(ranks, np.arange(size) % 5000, np.arange(queries))
    assert time.perf_counter() - start < 40
    # 200 positives among a million, in random places.
    assert 0 < found["medium"]["map"] < 0.01
    assert original["map"] == found["medium"]["map"]
    assert 0 < by_label["map"] < 0.01


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
    with pytest.raises(ValueError, match="exclude: got 2 to 2, expected indices below 2"):
        labelled([[0], [1]], [0, 1], [0], exclude=[2])


def original_loop(ranking: Sequence[int], truth: dict[str, list[int]], ks: Sequence[int]) -> dict[str, float]:
    """The original protocol step by step, as its authors' program goes: recall and precision at every rank."""
    positives = truth["good"] + truth["ok"]
    if not positives:
        return {"map": math.nan, **{f"p@{k}": math.nan for k in ks}}
    area, old_recall, old_precision, found = 0.0, 0.0, 1.0, 0
    kept = [index for index in ranking if index not in truth["junk"]]
    for place, index in enumerate(kept):
        found += index in positives
        recall, precision = found / len(positives), found / (place + 1)
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return {"map": area, **{f"p@{k}": sum(index in positives for index in kept[:k]) / k for k in ks}}


def test_original_worked_by_hand() -> None:
    # Ranking 3 0 4 2 1 5 without junk 3: 0 4 2 1 5. Recall rises at places 0, 2, 3 from precisions 1, 1/2, 2/3.
    gnd = [{"good": [0], "ok": [1, 2], "junk": [3]}]
    found = oxford(np.array([[3], [0], [4], [2], [1], [5]]), gnd, ks=(1, 2, 4))
    assert found["map"] == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3)
    assert (found["p@1"], found["p@2"], found["p@4"]) == (1, 0.5, 0.75)
    # Nothing right before place 1: the precision there starts from 0, not from 1.
    assert oxford([[1], [0]], [{"good": [0], "ok": [], "junk": []}])["map"] == 0.25


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_original_agrees_with_the_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    kinds = data.draw(st.lists(st.sampled_from(["good", "ok", "junk", "none"]), min_size=size, max_size=size))
    truth = {kind: [i for i in range(size) if kinds[i] == kind] for kind in ("good", "ok", "junk")}
    ranking = data.draw(st.permutations(range(size)))[: data.draw(st.integers(1, size))]
    found = oxford_per_query(np.array(ranking)[:, None], [truth], ks=(1, 4))
    got = {name: values[0] for name, values in found.items()}
    assert got == pytest.approx(original_loop(ranking, truth, (1, 4)), nan_ok=True)


def retrieval_loop(ranking: Sequence[int], relevant: Sequence[int], depth: int) -> float:
    seen: set[int] = set()
    right, total = 0, 0.0
    for place, index in enumerate(ranking[:depth]):
        if index in relevant and index not in seen:
            right += 1
            total += right / (place + 1)
        seen.add(index)
    return total / min(len(set(relevant)), depth)


def test_landmark_retrieval_by_hand() -> None:
    # 7 right, 2 wrong, 7 again: counts once, keeps its place; 9 right in place 4; 8 is never found.
    ranks = np.array([[7, 0], [2, 1], [7, 2], [9, 3]])
    found = landmark_retrieval_per_query(ranks, [[7, 8, 9], [5]], ks=(1, 4))
    assert found["map@100"].tolist() == [(1 + 2 / 4) / 3, 0]
    assert found["p@1"].tolist() == [1, 0]
    assert found["p@4"].tolist() == [0.5, 0]
    # Four are relevant, two places count.
    assert landmark_retrieval([[1], [2], [3]], [[1, 2, 3, 4]], depth=2)["map@2"] == 1
    # A query for which nothing was found.
    assert landmark_retrieval(np.empty((0, 1), dtype=int), [[1]], ks=(5,)) == {"map@100": 0, "p@5": 0}


def test_only_the_first_hundred_places_count() -> None:
    ranks = np.arange(1000)[::-1][:, None]
    at_99, at_100 = landmark_retrieval(ranks, [[900]], ks=())["map@100"], landmark_retrieval(ranks, [[899]], ks=())
    assert at_99 == pytest.approx(1 / 100)
    assert at_100["map@100"] == 0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_landmark_retrieval_agrees_with_the_loop(data: st.DataObject) -> None:
    indices = st.integers(0, 12)
    depth, places = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    columns = data.draw(st.lists(st.lists(indices, min_size=places, max_size=places), min_size=1, max_size=4))
    relevant = [data.draw(st.lists(indices, min_size=1, max_size=8)) for _ in columns]
    found = landmark_retrieval_per_query(np.array(columns).T, relevant, depth=depth)[f"map@{depth}"]
    expected = [retrieval_loop(*pair, depth) for pair in zip(columns, relevant, strict=True)]
    assert found == pytest.approx(expected)


def gap_loop(predictions: dict[str, tuple[int, float]], truth: dict[str, set[int]]) -> float:
    ranked = sorted(predictions.items(), key=lambda item: (-item[1][1], item[0], item[1][0]))
    right, total = 0, 0.0
    for place, (name, (label, _)) in enumerate(ranked, start=1):
        if label in truth[name]:
            right += 1
            total += right / place
    return total / sum(bool(labels) for labels in truth.values())


def test_gap_by_hand() -> None:
    truth = {"a": {1}, "b": {2, 3}, "c": set(), "d": {4}, "e": set()}
    # By score: c (no landmark: wrong), b right, a wrong; d has no prediction.
    found = landmark_gap(["a", "b", "c"], [9, 3, 5], [0.1, 0.5, 0.9], truth)
    assert found == pytest.approx((1 / 2) / 3)
    # Equal scores go by id: a (wrong) stands before b.
    assert landmark_gap(["b", "a"], [2, 9], [0.5, 0.5], truth) == pytest.approx((1 / 2) / 3)
    assert landmark_gap([], [], [], truth) == 0
    assert math.isnan(landmark_gap(["c"], [1], [0.5], {"c": set()}))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_gap_agrees_with_the_loop(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=1, max_size=9, unique=True))
    labels = st.integers(0, 3)
    truth = {name: data.draw(st.sets(labels, max_size=2)) for name in names}
    predictions = {
        name: (data.draw(labels), data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])))
        for name in names
        if data.draw(st.booleans())
    }
    found = landmark_gap(
        list(predictions), [label for label, _ in predictions.values()], [s for _, s in predictions.values()], truth
    )
    if not any(truth.values()):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(gap_loop(predictions, truth))


def test_landmarks_bad_input() -> None:
    with pytest.raises(ValueError, match="query 1 has none, expected at least one image"):
        landmark_retrieval([[0, 1]], [[0], []])
    with pytest.raises(ValueError, match="got -1, expected database indices"):
        landmark_retrieval([[-1]], [[0]])
    with pytest.raises(ValueError, match="ks: got"):
        landmark_retrieval([[0]], [[0]], depth=0)
    truth: dict[str, set[int]] = {"a": {1}, "b": set()}
    with pytest.raises(ValueError, match="ids: an image comes twice"):
        landmark_gap(["a", "a"], [1, 1], [1, 1], truth)
    with pytest.raises(ValueError, match="ids: 'c' is not in the ground truth"):
        landmark_gap(["a", "c"], [1, 1], [1, 1], truth)
    with pytest.raises(ValueError, match="scores: got shape"):
        landmark_gap(["a", "b"], [1, 1], [1, math.nan], truth)
    with pytest.raises(ValueError, match="classes: got float64"):
        landmark_gap(["a", "b"], [1.0, 1.5], [1, 1], truth)

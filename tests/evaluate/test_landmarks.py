"""Google Landmarks v2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks import Judge, identifier, landmark_path, write_landmarks


def test_landmark_retrieval(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    write_landmarks(tmp_path)
    measured = evaluate("gldv2-retrieval", tmp_path, "--html", tmp_path / "page.html")
    index = [landmark_path(tmp_path, "index", identifier("b", number)) for number in range(9)]

    def precision(query: int, relevant: set[int]) -> float:
        ranking = judge.rank(landmark_path(tmp_path, "test", identifier("c", query)), index)
        hits = [found in relevant for found in ranking]
        return sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / len(relevant)

    expected = {"public": (precision(0, {3, 6}) + precision(3, {2, 8, 0})) / 2, "private": precision(2, {1})}
    assert {name: values["map@100"] for name, values in measured["metrics"].items()} == pytest.approx(expected)
    assert (measured["database"], measured["queries"], measured["queries_cropped"]) == (9, 3, False)
    page = (tmp_path / "page.html").read_text()
    assert page.count('<article class="row">') == 3
    assert page.count('<figure class="picture correct">') == 6
    assert page.count('<figure class="picture wrong">') == 3 * 9 - 6


def test_a_landmark_query_that_cannot_be_read_scores_nothing(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    write_landmarks(tmp_path)
    broken = landmark_path(tmp_path, "test", identifier("c", 2))
    broken.write_bytes(b"")
    measured = evaluate("gldv2-retrieval", tmp_path)
    assert measured["metrics"]["private"]["map@100"] == 0
    assert measured["metrics"]["public"]["map@100"] > 0
    assert measured["unreadable_queries"] == [[f"c/0/0/{broken.name}", "the file is empty"]]
    assert measured["queries"] == 3


def test_landmark_recognition(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    write_landmarks(tmp_path)
    landmark_path(tmp_path, "test", identifier("c", 5)).write_bytes(b"")
    measured = evaluate("gldv2-recognition", tmp_path, "--html", tmp_path / "page.html")
    train = [landmark_path(tmp_path, "train", identifier("a", number)) for number in range(8)]
    predictions = []
    for query, truth in ((0, {10, 11}), (1, set()), (3, {12, 13})):
        descriptor = judge.describe(landmark_path(tmp_path, "test", identifier("c", query)))
        neighbours = sorted(
            ((float(descriptor @ judge.describe(path)), row) for row, path in enumerate(train)), reverse=True
        )
        votes: dict[int, float] = {}
        for score, row in neighbours[:5]:
            votes[10 + row // 2] = votes.get(10 + row // 2, 0) + score
        answer = max(votes, key=lambda landmark: votes[landmark])
        predictions.append((votes[answer], answer in truth))
    predictions.sort(reverse=True)
    hits = [hit for _, hit in predictions]
    gap = sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit) / 3
    assert measured["metrics"]["public"]["gap"] == pytest.approx(gap)
    assert (measured["database"], measured["queries"]) == (8, 5)
    page = (tmp_path / "page.html").read_text()
    # Of the four images that show a landmark; the one that cannot be read found nothing.
    assert page.count('<article class="row">') == 4
    assert page.count("correct 100.0%") + page.count("correct 0.0%") == 4
    assert page.count("no results") == 1

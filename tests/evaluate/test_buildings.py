"""Oxford and Paris, original and revisited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.benchmarks import BOX, NAMES, REVISITED, SETUPS, Judge, draw, hamlet, trapezoids, write_revisited


@pytest.mark.parametrize(("name", "prefix"), [("oxford5k", "oxc1_"), ("paris6k", "")])
def test_original_oxford_and_paris(
    evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path, name: str, prefix: str
) -> None:
    folder = tmp_path / name
    paths = [folder / "jpg" / f"{image}.jpg" for image in NAMES]
    for seed, path in enumerate(paths):
        draw(path, seed)
    truth = {"tower_1": (NAMES[3], [3, 5], [7], [1, 2]), "bridge_1": (NAMES[8], [8], [0, 9], [])}
    for query, (image, *lists) in truth.items():
        (folder / f"{query}_query.txt").write_text(f"{prefix}{image} {' '.join(map(str, BOX))}\n")
        for kind, indices in zip(("good", "ok", "junk"), lists, strict=True):
            (folder / f"{query}_{kind}.txt").write_text("".join(f"{NAMES[index]}\n" for index in indices))
    for flags, box in (((), BOX), (("--no-crop",), None)):
        measured = evaluate(name, tmp_path, *flags)
        rankings = [judge.rank(folder / "jpg" / f"{image}.jpg", paths, box) for image, *_ in truth.values()]
        expected = [
            trapezoids(ranking, good + ok, junk)
            for ranking, (_, good, ok, junk) in zip(rankings, truth.values(), strict=True)
        ]
        assert measured["metrics"]["original"]["map"] == pytest.approx(np.mean(expected))
        assert measured["queries_cropped"] == (box is not None)
        assert (measured["database"], measured["queries"]) == (12, 2)


@pytest.mark.parametrize(("dataset", "size"), [("roxford5k", 12), ("roxford5k+1m", 15)])
def test_revisited_with_and_without_distractors(
    evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path, dataset: str, size: int
) -> None:
    paths = write_revisited(tmp_path)[:size]
    measured = evaluate(dataset, tmp_path)
    images = tmp_path / "roxford5k" / "jpg"
    rankings = [judge.rank(images / f"query_00000{query}.jpg", paths, BOX) for query in range(2)]
    for setup, kinds in SETUPS.items():
        positive, junk = ([index for kind in each for index in REVISITED[kind]] for each in kinds)
        expected = [trapezoids(rankings[0], positive, junk)]
        # The second query has hard images alone: easy goes without it.
        expected += [trapezoids(rankings[1], [1], [])] if setup != "easy" else []
        assert measured["metrics"][setup]["map"] == pytest.approx(np.mean(expected))
    assert (measured["database"], measured["queries"], measured["queries_cropped"]) == (size, 2, True)


def test_what_the_training_set_has_seen_is_left_out_beside_the_whole(
    evaluate: Callable[..., dict[str, Any]], judge: Judge, checkpoint: Path, tmp_path: Path
) -> None:
    paths = write_revisited(tmp_path)[:12]
    seen = tmp_path / "seen.txt"
    seen.write_text("query_000000\n")
    whole = evaluate("roxford5k", tmp_path)["metrics"]
    measured = evaluate("roxford5k", tmp_path, "--seen", seen)
    ranking = judge.rank(tmp_path / "roxford5k" / "jpg" / "query_000001.jpg", paths, BOX)
    assert measured["queries_seen"] == 1
    assert {setup: measured["metrics"][setup] for setup in SETUPS} == whole
    assert measured["metrics"]["medium, unseen"]["map"] == pytest.approx(trapezoids(ranking, [1], []))
    assert measured["metrics"]["hard, unseen"] == measured["metrics"]["medium, unseen"]
    # The other query has no easy image.
    assert set(measured["metrics"]["easy, unseen"].values()) == {None}
    for text, message in (
        ("query_9\n", "names 'query_9', expected a query such as query_000000.jpg"),
        (None, "no such"),
    ):
        seen.unlink() if text is None else seen.write_text(text)
        result = hamlet("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint, "--seen", seen)
        assert result.exit_code == 1
        assert message in result.stderr


def test_distractors_are_described_once_for_both_benchmarks(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    write_revisited(tmp_path)
    evaluate("roxford5k+1m", tmp_path)
    before = (tmp_path / "out" / "revisitop1m" / "descriptors.npy").stat().st_mtime_ns
    evaluate("roxford5k", tmp_path)
    (tmp_path / "roxford5k").rename(tmp_path / "rparis6k")
    (tmp_path / "rparis6k" / "gnd_roxford5k.pkl").rename(tmp_path / "rparis6k" / "gnd_rparis6k.pkl")
    evaluate("rparis6k+1m", tmp_path)
    assert (tmp_path / "out" / "revisitop1m" / "descriptors.npy").stat().st_mtime_ns == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "roxford5k-database", "roxford5k-queries", "rparis6k-database", "rparis6k-queries", "revisitop1m"
    }  # fmt: skip

"""Oxford and Paris, original and revisited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.benchmarks import BOX, NAMES, REVISITED, SETUPS, Judge, draw, trapezoids, write_revisited


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

"""Pictures with labels, and what is wrong with files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate.benchmarks import NAMES, Judge, draw, hamlet


def test_a_csv_file_with_roles(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in NAMES]
    for seed, path in enumerate(paths):
        draw(path, seed)
    rows = [f"{path.name},{row % 3},{'query' if row < 3 else 'database'}" for row, path in enumerate(paths)]
    (tmp_path / "mine.csv").write_text("\n".join(["image,label,role", *rows]))
    measured = evaluate("csv", tmp_path / "mine.csv")
    expected = []
    for query in range(3):
        hits = [(row + 3) % 3 == query for row in judge.rank(paths[query], paths[3:])]
        expected.append(np.mean([sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]))
    assert measured["metrics"]["all"]["map"] == pytest.approx(np.mean(expected))
    assert (measured["database"], measured["queries"]) == (9, 3)


def test_errors_are_one_line(checkpoint: Path, tmp_path: Path) -> None:
    for dataset, words in {
        "oxford5k": "no ground truth, expected files such as all_souls_1_query.txt",
        "rparis6k+1m": "no gnd_rparis6k.pkl, expected it there or in",
        "gldv2-retrieval": "index.csv: no such file, expected a CSV file with the columns id",
        "csv": "no such file, expected a CSV file with the columns image,label",
        "imagenet": "dataset: got 'imagenet', expected one of oxford5k, paris6k",
    }.items():
        result = hamlet("evaluate", dataset, "--data", tmp_path, "--model", checkpoint)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1
        assert words in result.stderr

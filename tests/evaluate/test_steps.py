"""What comes between images and scores: scales, whitening, re-ranking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hamlet.models import create_model, save_checkpoint
from tests.evaluate.benchmarks import (
    BOX,
    SIDE,
    Judge,
    draw,
    hamlet,
    queries_of,
    revisited_map,
    unit,
    write_revisited,
    write_training,
)


@pytest.mark.parametrize(
    ("flags", "scales"),
    [(("--multi-scale",), (0.7071, 1.0, 1.4142)), (("--scales", "1,0.7071,0.5"), (1.0, 0.7071, 0.5))],
)
def test_several_scales(
    evaluate: Callable[..., dict[str, Any]],
    judge: Judge,
    tmp_path: Path,
    flags: tuple[str, ...],
    scales: tuple[float, ...],
) -> None:
    paths = write_revisited(tmp_path)[:12]
    measured = evaluate("roxford5k", tmp_path, *flags)
    database = np.array([judge.describe_scales(path, None, scales) for path in paths])
    queries = np.array([judge.describe_scales(path, BOX, scales) for path in queries_of(tmp_path)])
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(queries @ database.T))
    assert measured["scales"] == list(scales)
    manifest = json.loads((tmp_path / "out" / "roxford5k-database" / "manifest.json").read_text())
    assert manifest["scales"] == list(scales)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scales", "1;2"), "got '1;2', expected numbers such as 1,0.7071,0.5"),
        (("--scales", "1", "--multi-scale"), "give one of --multi-scale and --scales"),
    ],
)
def test_scales_that_are_none(checkpoint: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    result = hamlet("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint, *flags)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


def project_pca(rows: np.ndarray[Any, Any], dim: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    mean = rows.mean(axis=0)
    _, deviations, directions = np.linalg.svd(rows - mean, full_matrices=False)
    return mean, directions[:dim] / deviations[:dim, None]


def project_learned(rows: np.ndarray[Any, Any], dim: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    pairs = [(3 * thing + view, 3 * thing + (view + 1) % 3) for thing in range(16) for view in range(3)]
    differences = np.array([rows[one] - rows[other] for one, other in pairs])
    inverse = np.linalg.inv(np.linalg.cholesky(differences.T @ differences / len(pairs)))
    mean = rows.mean(axis=0)
    return mean, np.linalg.svd((rows - mean) @ inverse.T, full_matrices=False)[2][:dim] @ inverse


@pytest.mark.parametrize(("flags", "project"), [((), project_pca), (("--learned",), project_learned)])
def test_whitening(
    evaluate: Callable[..., dict[str, Any]],
    checkpoint: Path,
    judge: Judge,
    tmp_path: Path,
    flags: tuple[str, ...],
    project: Callable[..., tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
) -> None:
    training, paths = write_training(tmp_path / "training"), write_revisited(tmp_path)[:12]
    (tmp_path / "training" / "00" / "broken.png").write_bytes(b"")
    file = tmp_path / "w.safetensors"
    line = ("whiten", checkpoint, tmp_path / "training", "--out", file, "--longest-side", SIDE, "--dim", 5, *flags)
    result = hamlet(*line)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{file}: 16 to 5 numbers, 1 images left out\n"
    assert not file.with_name("w.safetensors.extraction").exists()
    measured = evaluate("roxford5k", tmp_path, "--whiten", file)
    mean, projection = project(np.array([judge.describe(path) for path in training]), 5)
    database = unit((np.array([judge.describe(path) for path in paths]) - mean) @ projection.T)
    queries = unit((np.array([judge.describe(path, BOX) for path in queries_of(tmp_path)]) - mean) @ projection.T)
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(queries @ database.T))
    assert measured["whitened"]
    assert measured["cost"]["descriptor_bytes"] == 20


def test_a_whitening_of_other_descriptors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_training(tmp_path / "training")
    write_revisited(tmp_path)
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "other.pt", create_model("gem_resnet18", descriptor_dim=16))
    file = tmp_path / "w.safetensors"
    size = ("--longest-side", SIDE)
    assert hamlet("whiten", tmp_path / "other.pt", tmp_path / "training", "--out", file, *size).exit_code == 0
    for model, flags, words in (
        (checkpoint, size, r"\(model \w+, not \w+\)"),
        (tmp_path / "other.pt", (), r"\(longest_side 48, not 1024\)"),
        (tmp_path / "other.pt", (*size, "--multi-scale"), r"\(scales \(1\.0,\), not \(0\.7071, 1\.0, 1\.4142\)\)"),
    ):
        measuring = ("evaluate", "roxford5k", "--data", tmp_path, "--model", model)
        indexing = ("index", model, tmp_path / "roxford5k", "--out", tmp_path / "a.index")
        for line in (measuring, indexing):
            result = hamlet(*line, *flags, "--whiten", file)
            assert (result.exit_code, result.stdout) == (1, "")
            assert re.search(rf"w\.safetensors: learnt from other descriptors {words}, expected", result.stderr)
    assert not (tmp_path / "a.index.extraction").exists()


def test_an_index_does_to_queries_what_was_done_to_its_images(checkpoint: Path, judge: Judge, tmp_path: Path) -> None:
    paths = write_training(tmp_path / "training")
    file, out, size = tmp_path / "w.safetensors", tmp_path / "a.index", ("--longest-side", SIDE, "--multi-scale")
    assert hamlet("whiten", checkpoint, tmp_path / "training", "--out", file, "--dim", 5, *size).exit_code == 0
    line = ("index", checkpoint, tmp_path / "training", "--out", out, "--whiten", file, *size)
    assert hamlet(*line, "--dtype", "float16").exit_code == 0
    rows = np.array([judge.describe_scales(path) for path in paths])
    mean, projection = project_pca(rows, 5)
    scores = unit((rows - mean) @ projection.T) @ unit((rows[7] - mean) @ projection.T)
    found = json.loads(hamlet("search", out, paths[7], "--top", 6, "--json").stdout)["queries"][0]["results"]
    assert [each["path"] for each in found] == [str(paths[row]) for row in np.argsort(-scores)[:6]]
    # The images' descriptors were rounded to 11 bits before they were whitened.
    assert [each["score"] for each in found] == pytest.approx(np.sort(scores)[::-1][:6].tolist(), abs=0.01)
    (tmp_path / "new").mkdir()
    moved = file.rename(tmp_path / "new" / file.name)
    assert "w.safetensors: a file that made" in hamlet("search", out, paths[7]).stderr
    fit = ("whiten", checkpoint, tmp_path / "training", "--out", file, "--dim", 4, *size)
    assert hamlet(*fit).exit_code == 0
    assert "w.safetensors: not the whitening that made" in hamlet("search", out, paths[7]).stderr
    out.rename(tmp_path / "new" / out.name)
    again = json.loads(hamlet("search", tmp_path / "new" / out.name, paths[7], "--top", 6, "--json").stdout)
    assert again["queries"][0]["results"] == found
    assert moved.exists()


def test_float16_descriptors(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    paths = [*write_revisited(tmp_path)]
    measured = evaluate("roxford5k+1m", tmp_path, "--dtype", "float16")
    rows = [np.array([judge.describe(path) for path in paths]).astype(np.float16).astype(float)]
    rows += [np.array([judge.describe(path, BOX) for path in queries_of(tmp_path)]).astype(np.float16).astype(float)]
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(rows[1] @ rows[0].T))
    assert measured["cost"]["descriptor_bytes"] == 32
    assert np.load(tmp_path / "out" / "roxford5k-database" / "descriptors.npy", mmap_mode="r").dtype == np.float16


def test_whitening_that_cannot_be_learnt(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        draw(tmp_path / "few" / name, len(name))
    line = ("whiten", checkpoint, tmp_path / "few", "--out", tmp_path / "w", "--longest-side", SIDE)
    result = hamlet(*line, "--learned")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the differences of 1 pairs span" in result.stderr
    result = hamlet(*line, "--dim", 16)
    assert "dim: got 16, expected 1 to" in result.stderr
    (tmp_path / "few" / "b" / "2.png").unlink()
    assert "every class has a single image" in hamlet(*line[:3], "--learned", "--out", tmp_path / "v").stderr
    assert not (tmp_path / "w").exists()


def test_reranking(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    paths = write_revisited(tmp_path)[:12]
    database = np.array([judge.describe(path) for path in paths])
    queries = np.array([judge.describe(path, BOX) for path in queries_of(tmp_path)])

    def expand(row: np.ndarray[Any, Any], k: int, alpha: float) -> np.ndarray[Any, Any]:
        similarity = database @ row
        nearest = np.argsort(-similarity)[:k]
        return unit(row + (similarity[nearest, None] ** alpha * database[nearest]).sum(axis=0))

    expanded = np.array([expand(row, 3, 2.0) for row in queries])
    measured = evaluate("roxford5k", tmp_path, "--rerank", "alpha-qe:k=3:alpha=2")
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(expanded @ database.T))
    assert measured["rerank"] == [{"name": "alpha-qe", "k": 3, "alpha": 2.0}]

    augmented = np.array([
        unit(row + sum((database[other] @ row) ** 2 * database[other] for other in np.argsort(-database @ row)[1:5]))
        for row in database
    ])  # fmt: skip
    measured = evaluate("roxford5k", tmp_path, "--rerank", "dba:k=4:alpha=2")
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(queries @ augmented.T))

    similarity = database @ database.T
    np.fill_diagonal(similarity, -1)
    near = similarity >= np.sort(similarity, axis=1)[:, -4:-3]
    weights = np.where(near & near.T, similarity.clip(0) ** 3, 0)
    sums = np.where(weights.sum(axis=1) > 0, weights.sum(axis=1), 1)
    system = np.eye(12) - 0.9 * weights / np.sqrt(sums[:, None] * sums[None, :])
    scores = []
    for row in expanded:
        start = (database @ row).clip(0) ** 3
        start[np.argsort(-start)[2:]] = 0
        solution = np.linalg.solve(system, start)
        scores.append(np.where(solution > 1e-12, solution, database @ row - 2))
    steps = "alpha-qe:k=3:alpha=2,diffusion:k=4:query_k=2:alpha=0.9"
    measured = evaluate("roxford5k", tmp_path, "--rerank", steps)
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(np.array(scores)))


def test_steps_that_are_not_known_are_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    line = ("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint)
    assert "rerank: got 'qe', expected one of dba, alpha-qe, diffusion" in hamlet(*line, "--rerank", "qe").stderr
    assert "expected diffusion last" in hamlet(*line, "--rerank", "diffusion,dba").stderr
    assert "a folder, expected the file to write" in hamlet(*line, "--html", tmp_path).stderr
    assert (
        "no such file, expected a file that `hamlet whiten` wrote" in hamlet(*line, "--whiten", tmp_path / "w").stderr
    )

"""Descriptors that are mapped from files stay there: no step between them and the scores holds a copy of them all."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hamlet.retrieval import neighbours
from hamlet.retrieval.evaluate import Described, _joined, _whitened
from hamlet.retrieval.neighbours import inner_products, nearest, scratch
from hamlet.retrieval.reranking import make_search, parse_steps
from hamlet.retrieval.whitening import fit_pca

ROWS, DIM = 16_000, 128


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 256)
    monkeypatch.setattr(neighbours, "_DATABASE_BLOCK", 512)


@pytest.fixture(params=["float32", "float16"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> list[NDArray[Any]]:
    """Two files of unit vectors, mapped."""
    rows = np.random.default_rng(0).normal(size=(ROWS, DIM)) * np.linspace(1, 3, DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for number, part in enumerate((rows[:9000], rows[9000:])):
        np.save(tmp_path / f"{number}.npy", part.astype(request.param))
    return [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(2)]


def test_from_descriptors_to_scores_without_a_copy(parts: list[NDArray[Any]], tmp_path: Path) -> None:
    tracemalloc.start()
    database = Described(_joined(parts, tmp_path), np.arange(ROWS), ROWS, [])
    whitened = _whitened(database, fit_pca(database.descriptors, 96), tmp_path).descriptors
    search = make_search(whitened[:5], whitened, parse_steps("dba:k=3,alpha-qe:k=3"), tmp_path)
    scores = search(slice(0, 5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ROWS * DIM * 2 / 3
    assert scores.argmax(axis=1).tolist() == list(range(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "1.npy"]


def test_in_parts_the_neighbours_are_the_same(parts: list[NDArray[Any]], tmp_path: Path) -> None:
    database = _joined(parts, tmp_path)
    plain = np.concatenate(parts).astype(np.float64)
    queries = np.random.default_rng(1).normal(size=(9, DIM)).astype(np.float32)
    expected = queries @ plain.T
    assert np.allclose(inner_products(queries, database), expected, atol=1e-4)
    scores, rows = nearest(queries, database, 40)
    order = np.argsort(-expected, axis=1)[:, :40]
    assert np.array_equal(rows, order)
    assert np.allclose(scores, np.take_along_axis(expected, order, axis=1), atol=1e-4)
    assert nearest(queries, database, ROWS + 5)[1].shape == (9, ROWS)


def test_scratch_leaves_no_file(tmp_path: Path) -> None:
    array = scratch((3, 2), tmp_path)
    array[:] = 7
    assert list(tmp_path.iterdir()) == []
    assert array.tolist() == [[7, 7]] * 3

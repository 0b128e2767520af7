from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from hamlet.retrieval.whitening import Origin, Whitening, fit_learned, fit_pca, load_whitening, pairs_of_classes

ORIGIN = Origin("0123456789abcdef", 1024, (0.5, 1.0))


def stretched(count: int, dim: int, seed: int) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(count, dim)) @ generator.normal(size=(dim, dim)) + generator.normal(size=dim)
    return mixed.astype(np.float32)


def unnormalised(whitening: Whitening, rows: np.ndarray[Any, Any]) -> Any:
    return (rows.astype(np.float64) - whitening.mean) @ whitening.projection.T.astype(np.float64)


def test_pca_makes_all_directions_vary_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hamlet.retrieval.neighbours.BLOCK", 64)
    rows = stretched(300, 6, 0)
    whitening = fit_pca(rows)
    assert whitening.projection.shape == (6, 6)
    projected = unnormalised(whitening, rows)
    assert np.allclose(projected.mean(axis=0), 0, atol=1e-4)
    assert np.allclose(projected.T @ projected / 300, np.eye(6), atol=1e-3)
    result = whitening(rows)
    assert result.dtype == np.float32
    assert np.allclose(result, projected / np.linalg.norm(projected, axis=1, keepdims=True), atol=1e-4)


def test_pca_keeps_the_directions_of_largest_variance() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 4)) * [1, 9, 3, 0.1]
    projection = fit_pca(rows, 2).projection
    assert np.abs(projection).argmax(axis=1).tolist() == [1, 2]
    deviations = (rows @ projection.T).std(axis=0)
    assert deviations == pytest.approx([1, 1], rel=1e-3)


def test_pca_of_few_descriptors_keeps_what_varies() -> None:
    rows = stretched(5, 8, 0)
    assert fit_pca(rows).projection.shape == (4, 8)
    with pytest.raises(ValueError, match="dim: got 5, expected 1 to 4, the directions in which 5 descriptors vary"):
        fit_pca(rows, 5)
    with pytest.raises(ValueError, match="dim: got None, expected 1 to 0"):
        fit_pca(np.ones((3, 2)))


def test_learned_by_its_definition() -> None:
    generator = np.random.default_rng(0)
    things = generator.normal(size=(60, 5)) * [5, 4, 3, 2, 1]
    rows = np.repeat(things, 4, axis=0) + generator.normal(size=(240, 5)) @ generator.normal(size=(5, 5))
    pairs = np.array(pairs_of_classes([str(row // 4) for row in range(240)]))
    assert len(pairs) == 240
    whitening = fit_learned(rows, pairs)
    differences = rows[pairs[:, 0]] - rows[pairs[:, 1]]
    projected = differences @ whitening.projection.T
    # Pairs differ alike in all directions...
    assert np.allclose(projected.T @ projected / len(pairs), np.eye(5), atol=1e-3)
    # ...and all descriptors vary along the axes, most along the first.
    covariance = np.cov(unnormalised(whitening, rows).T, bias=True)
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-2)
    assert np.all(np.diff(np.diag(covariance)) < 0)
    assert np.allclose(fit_learned(rows, pairs, 2).projection, whitening.projection[:2])


def test_learned_undoes_a_nuisance_that_pca_keeps() -> None:
    """Things differ in one direction, pictures of one thing in another, and by more."""
    generator = np.random.default_rng(1)
    rows = np.repeat(generator.normal(size=(50, 2)) * [1, 0.01], 2, axis=0) + generator.normal(size=(100, 2)) * [0.1, 9]
    pairs = [(2 * thing, 2 * thing + 1) for thing in range(50)]
    assert np.abs(fit_pca(rows, 1).projection).argmax() == 1
    assert np.abs(fit_learned(rows, pairs, 1).projection).argmax() == 0


def test_pairs_of_classes() -> None:
    assert pairs_of_classes(["a", "b", "a", "c", "b", "b"]) == [(0, 2), (1, 4), (4, 5), (5, 1)]


def test_learned_bad_input() -> None:
    rows = stretched(6, 4, 0)
    with pytest.raises(ValueError, match=r"pairs: got float64 \(0,\), expected integers \(pairs, 2\)"):
        fit_learned(rows, [])
    with pytest.raises(ValueError, match="pairs: got rows 0 to 6, expected rows of 6 descriptors"):
        fit_learned(rows, [[0, 6]])
    with pytest.raises(ValueError, match="differences of 3 pairs span 3 of 4 dimensions, expected all; give more"):
        fit_learned(rows, [[0, 1], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match="span 0 of 4 dimensions"):
        fit_learned(rows, [[0, 0]])
    with pytest.raises(ValueError, match="dim: got 5, expected 1 to 4, the dimensions of the descriptors"):
        fit_learned(rows, [[0, 1]], 5)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    rows = stretched(50, 4, 0)
    whitening = fit_pca(rows, 3, origin=ORIGIN)
    whitening.save(tmp_path / "deep" / "w.safetensors")
    loaded = Whitening.load(tmp_path / "deep" / "w.safetensors")
    assert loaded.origin == ORIGIN
    assert np.array_equal(loaded(rows), whitening(rows))
    with pytest.raises(ValueError, match=r"descriptors: got shape \(50, 3\), expected \(n, 4\)"):
        loaded(rows[:, :3])


def test_it_is_good_for_descriptors_of_its_own_making_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    fit_pca(stretched(50, 4, 0), origin=ORIGIN).save(path)
    assert load_whitening(path, ORIGIN).origin == ORIGIN
    for change, words in {
        "model": ({"model": "f" * 16}, "model 0123456789abcdef, not ffffffffffffffff"),
        "side": ({"longest_side": 512}, "longest_side 1024, not 512"),
        "scales": ({"scales": (1.0,)}, r"scales \(0.5, 1.0\), not \(1.0,\)"),
    }.values():
        with pytest.raises(ValueError, match=f"learnt from other descriptors \\({words}\\), expected a file that"):
            load_whitening(path, dataclasses.replace(ORIGIN, **change))  # type: ignore[arg-type]
    fit_pca(stretched(50, 4, 0)).save(path)
    with pytest.raises(ValueError, match="does not tell what it was learnt from"):
        load_whitening(path, ORIGIN)


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match=r"no such file, expected a file that `hamlet whiten` wrote"):
        Whitening.load(path)
    fit_pca(stretched(50, 4, 0)).save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:-3], b"\x80\x04K\x01.", content[:5]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or foreign") as caught:
            Whitening.load(path)
        assert "\n" not in str(caught.value)
    tensors = {"mean": np.zeros(2, np.float32), "projection": np.zeros((2, 2), np.float32)}
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(ValueError, match="not a whitening"):
        Whitening.load(path)
    about = '{"format": "hamlet-whitening", "version": 9}'
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"hamlet": about}))
    with pytest.raises(ValueError, match="version 9, expected 2"):
        Whitening.load(path)
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"hamlet": "[]"}))
    with pytest.raises(ValueError, match="not a whitening"):
        Whitening.load(path)
    for mean in (np.zeros(3, np.float32), np.zeros(2), np.array([0, np.nan], np.float32)):
        wrong = {**tensors, "mean": mean}
        path.write_bytes(safetensors.numpy.save(wrong, metadata={"hamlet": about.replace("9", "2")}))
        with pytest.raises(ValueError, match="not a whitening"):
            Whitening.load(path)

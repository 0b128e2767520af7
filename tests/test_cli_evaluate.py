"""`hamlet evaluate` on every benchmark, written small in its own format, against arithmetic done here step by step."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from hamlet.cli import app
from hamlet.images import load_image
from hamlet.models import create_model, load_checkpoint, save_checkpoint

SIDE = 48
NAMES = [f"place_{number:06d}" for number in range(12)]
BOX = (4.4, 6.0, 40.6, 38.0)
QUERY = "query_000000"


def hamlet(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, create_model("gem_resnet18", descriptor_dim=16))
    return path


@pytest.fixture(autouse=True)
def quick_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a pass takes is measured for no longer than it must be: here it does not matter."""
    monkeypatch.setattr("hamlet.retrieval.cost._SECONDS", 0.0)


def draw(path: Path, seed: int) -> None:
    """A picture of coarse coloured squares that the seed chooses, 48 to 60 pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((48 + seed % 4 * 4, 44), Image.Resampling.NEAREST).save(path, quality=95)


class Judge:
    """Descriptors one picture at a time, and what follows from them by the plainest means."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_checkpoint(checkpoint)[0].eval()

    def describe(self, path: Path, box: Sequence[float] | None = None) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return self.model([load_image(path, SIDE, box=box).float() / 255])[0].double().numpy()

    def describe_scales(self, path: Path, box: Sequence[float] | None = None) -> np.ndarray[Any, Any]:
        picture = load_image(path, SIDE, box=box).float() / 255
        total = np.zeros(16)
        for scale in (0.7071, 1, 1.4142):
            size = [round(side * scale) for side in picture.shape[1:]]
            resized = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)
            with torch.no_grad():
                total += self.model(resized)[0].double().numpy()
        return total / np.linalg.norm(total)

    def rank(self, query: Path, database: Sequence[Path], box: Sequence[float] | None = None) -> list[int]:
        scores = [float(self.describe(query, box) @ self.describe(path)) for path in database]
        return sorted(range(len(database)), key=lambda index: -scores[index])


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Judge:
    return Judge(checkpoint)


@pytest.fixture
def evaluate(checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the command and return its JSON; what it prints as a table must hold the same numbers."""

    def run(dataset: str, data: Path, *flags: object) -> dict[str, Any]:
        line = ("evaluate", dataset, "--data", data, "--model", checkpoint, "--longest-side", SIDE, *flags)
        result = hamlet(*line, "--out", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        measured: dict[str, Any] = json.loads(result.stdout)
        shown = hamlet(*line, "--out", tmp_path / "out").stdout
        for values in measured["metrics"].values():
            assert all(value is None or f"{100 * value:.2f}" in shown for value in values.values())
        assert ("queries cropped" in shown) == measured["queries_cropped"]
        return measured

    return run


def trapezoids(ranking: Sequence[int], positive: Sequence[int], junk: Sequence[int]) -> float:
    area, found, old_precision = 0.0, 0, 1.0
    for place, index in enumerate(index for index in ranking if index not in junk):
        found += index in positive
        precision = found / (place + 1)
        if index in positive:
            area += (old_precision + precision) / 2 / len(positive)
        old_precision = precision
    return area


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


REVISITED = {"easy": [0, 4], "hard": [7], "junk": [2, 9]}
SETUPS = {
    "easy": (["easy"], ["junk", "hard"]),
    "medium": (["easy", "hard"], ["junk"]),
    "hard": (["hard"], ["junk", "easy"]),
}


def write_revisited(root: Path) -> list[Path]:
    """ROxford and the distractors in the folders that their own program makes; the database's paths in order."""
    folder, distractors = root / "roxford5k", root / "revisitop1m"
    paths = [folder / "jpg" / f"{image}.jpg" for image in NAMES]
    paths += [distractors / "jpg" / name for name in ("00/a.jpg", "00/b.jpg", "01/c.jpg")]
    for seed, path in enumerate(paths):
        draw(path, seed)
    draw(folder / "jpg" / f"{QUERY}.jpg", 100)
    gnd = [{"bbx": list(BOX), **REVISITED}, {"bbx": list(BOX), "easy": [], "hard": [1], "junk": []}]
    content = {"gnd": gnd, "imlist": NAMES, "qimlist": [QUERY, "query_000001"]}
    draw(folder / "jpg" / "query_000001.jpg", 101)
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    (distractors / "revisitop1m.txt").write_text("00/a.jpg\n00/b.jpg\n01/c.jpg\n")
    return paths


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


def identifier(letter: str, number: int) -> str:
    return f"{letter}{number:015x}"


def landmark_path(root: Path, split: str, id: str) -> Path:
    return root / split / id[0] / id[1] / id[2] / f"{id}.jpg"


def write_landmarks(root: Path) -> None:
    for split, letter, count in (("train", "a", 8), ("index", "b", 9), ("test", "c", 6)):
        for number in range(count):
            draw(landmark_path(root, split, identifier(letter, number)), 10 * ord(letter) + number)
    clean = [
        f"{10 + landmark},{identifier('a', 2 * landmark)} {identifier('a', 2 * landmark + 1)}" for landmark in range(4)
    ]
    tables = {
        "train_clean.csv": ["landmark_id,images", *clean],
        "index.csv": ["id", *(identifier("b", number) for number in range(9))],
        "retrieval_solution_v2.1.csv": [
            "id,images,Usage",
            f"{identifier('c', 0)},{identifier('b', 3)} {identifier('b', 6)},Public",
            f"{identifier('c', 1)},None,Ignored",
            f"{identifier('c', 2)},{identifier('b', 1)},Private",
            f"{identifier('c', 3)},{identifier('b', 2)} {identifier('b', 8)} {identifier('b', 0)},Public",
        ],
        "recognition_solution_v2.1.csv": [
            "id,landmarks,Usage",
            f"{identifier('c', 0)},10 11,Public",
            f"{identifier('c', 1)},,Public",
            f"{identifier('c', 2)},12,Private",
            f"{identifier('c', 3)},12 13,Public",
            f"{identifier('c', 4)},,Ignored",
            f"{identifier('c', 5)},11,Public",
        ],
    }
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")


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


def revisited_map(scores: np.ndarray[Any, Any]) -> float:
    """mAP under the medium setup of the two queries of `write_revisited`, from scores (2, database)."""
    rankings = [sorted(range(len(row)), key=lambda index, row=row: -row[index]) for row in scores]  # type: ignore[misc]
    return (trapezoids(rankings[0], [0, 4, 7], [2, 9]) + trapezoids(rankings[1], [1], [])) / 2


def queries_of(root: Path) -> list[Path]:
    return [root / "roxford5k" / "jpg" / f"query_00000{query}.jpg" for query in range(2)]


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_multi_scale(evaluate: Callable[..., dict[str, Any]], judge: Judge, tmp_path: Path) -> None:
    paths = write_revisited(tmp_path)[:12]
    measured = evaluate("roxford5k", tmp_path, "--multi-scale")
    database = np.array([judge.describe_scales(path) for path in paths])
    queries = np.array([judge.describe_scales(path, BOX) for path in queries_of(tmp_path)])
    assert measured["metrics"]["medium"]["map"] == pytest.approx(revisited_map(queries @ database.T))
    assert measured["scales"] == [0.7071, 1.0, 1.4142]
    manifest = json.loads((tmp_path / "out" / "roxford5k-database" / "manifest.json").read_text())
    assert manifest["scales"] == [0.7071, 1.0, 1.4142]


def write_training(folder: Path) -> list[Path]:
    """Sixteen things of three pictures each."""
    paths = [folder / f"{thing:02d}" / f"{view}.png" for thing in range(16) for view in range(3)]
    for seed, path in enumerate(paths):
        draw(path, 500 + seed)
    return paths


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


def test_a_whitening_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_training(tmp_path / "training")
    write_revisited(tmp_path)
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "other.pt", create_model("gem_resnet18", descriptor_dim=16))
    file = tmp_path / "w.safetensors"
    line = ("whiten", tmp_path / "other.pt", tmp_path / "training", "--out", file, "--longest-side", SIDE)
    assert hamlet(*line).exit_code == 0
    result = hamlet("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint, "--whiten", file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "w.safetensors: learnt from the descriptors of another model (" in result.stderr


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

"""Benchmarks written small in their own formats, and what follows from descriptors by the plainest means."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from hamlet.cli import app
from hamlet.images import load_image
from hamlet.models import load_checkpoint

SIDE = 48
NAMES = [f"place_{number:06d}" for number in range(12)]
BOX = (4.4, 6.0, 40.6, 38.0)
QUERY = "query_000000"


def hamlet(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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

    def describe_scales(
        self, path: Path, box: Sequence[float] | None = None, scales: Sequence[float] = (0.7071, 1, 1.4142)
    ) -> np.ndarray[Any, Any]:
        picture = load_image(path, SIDE, box=box).float() / 255
        total = np.zeros(16)
        for scale in scales:
            size = [round(side * scale) for side in picture.shape[1:]]
            resized = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)
            with torch.no_grad():
                total += self.model(resized)[0].double().numpy()
        return total / np.linalg.norm(total)

    def rank(self, query: Path, database: Sequence[Path], box: Sequence[float] | None = None) -> list[int]:
        scores = [float(self.describe(query, box) @ self.describe(path)) for path in database]
        return sorted(range(len(database)), key=lambda index: -scores[index])


def trapezoids(ranking: Sequence[int], positive: Sequence[int], junk: Sequence[int]) -> float:
    area, found, old_precision = 0.0, 0, 1.0
    for place, index in enumerate(index for index in ranking if index not in junk):
        found += index in positive
        precision = found / (place + 1)
        if index in positive:
            area += (old_precision + precision) / 2 / len(positive)
        old_precision = precision
    return area


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


def revisited_map(scores: np.ndarray[Any, Any]) -> float:
    """mAP under the medium setup of the two queries of `write_revisited`, from scores (2, database)."""
    rankings = [sorted(range(len(row)), key=lambda index, row=row: -row[index]) for row in scores]  # type: ignore[misc]
    return (trapezoids(rankings[0], [0, 4, 7], [2, 9]) + trapezoids(rankings[1], [1], [])) / 2


def queries_of(root: Path) -> list[Path]:
    return [root / "roxford5k" / "jpg" / f"query_00000{query}.jpg" for query in range(2)]


def unit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def write_training(folder: Path) -> list[Path]:
    """Sixteen things of three pictures each."""
    paths = [folder / f"{thing:02d}" / f"{view}.png" for thing in range(16) for view in range(3)]
    for seed, path in enumerate(paths):
        draw(path, 500 + seed)
    return paths

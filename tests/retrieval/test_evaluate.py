from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import hamlet
from hamlet.retrieval.evaluate import evaluate

# Pictures of one colour under a model that sees nothing but colour: every rank is known beforehand.
COLOURS = {
    "red": (255, 0, 0), "rose": (255, 60, 60), "brick": (200, 60, 40), "green": (80, 255, 0), "blue": (0, 0, 255)
}  # fmt: skip


class Colour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        return nn.functional.normalize(torch.stack([image.mean(dim=(1, 2)) for image in images]) * self.scale, dim=1)


@pytest.fixture
def colour(model: nn.Module) -> nn.Module:
    result = Colour()
    result.name, result.config = "colour", model.config  # type: ignore[assignment]
    return result


def write_benchmark(folder: Path) -> None:
    (folder / "jpg").mkdir(parents=True)
    for name, value in COLOURS.items():
        Image.new("RGB", (16, 16), value).save(folder / "jpg" / f"{name}.jpg", quality=95)
    # Only inside its box is the query red.
    query = Image.new("RGB", (64, 64), (0, 0, 255))
    query.paste((255, 0, 0), (16, 16, 48, 48))
    query.save(folder / "jpg" / "query.jpg", quality=95)
    names = ["blue", "brick", "green", "red", "rose"]
    gnd = [{"bbx": [20.4, 20, 44, 44.0], "easy": [1], "hard": [0], "junk": [3]}]
    content = {"gnd": gnd, "imlist": names, "qimlist": ["query"]}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))


def test_revisited(colour: nn.Module, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "data")
    found = evaluate(colour, "roxford5k", tmp_path / "data", longest_side=32, progress=False)
    # The ranking: red (junk), rose, brick (easy), green, blue (hard).
    assert found["metrics"]["easy"] == pytest.approx({"map": 0.25, "mp@1": 0, "mp@5": 0.5, "mp@10": 0.5})
    assert found["metrics"]["medium"] == pytest.approx({"map": 1 / 3, "mp@1": 0, "mp@5": 0.5, "mp@10": 0.5})
    assert found["metrics"]["hard"] == pytest.approx({"map": 1 / 6, "mp@1": 0, "mp@5": 1 / 3, "mp@10": 1 / 3})
    assert (found["database"], found["queries"], found["queries_cropped"]) == (5, 1, True)
    assert found["unreadable"] == []
    assert (found["cost"]["parameters"], found["cost"]["descriptor_bytes"]) == (3, 12)
    assert json.loads(json.dumps(found))["dataset"] == "roxford5k"


def test_unreadable_database_images_rank_last_and_are_named(colour: nn.Module, tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "jpg/brick.jpg").write_bytes(b"")
    found = evaluate(colour, "roxford5k", tmp_path, longest_side=32, progress=False)
    assert found["unreadable"] == [("brick.jpg", "the file is empty")]
    # Without red (junk) and blue (hard): rose, green, brick.
    assert found["metrics"]["easy"]["map"] == pytest.approx((0 + 1 / 3) / 2)


def test_unreadable_query_is_an_error(colour: nn.Module, tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "jpg/query.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"query\.jpg: a query that cannot be read \(the file is empty\)"):
        evaluate(colour, "roxford5k", tmp_path, longest_side=32, progress=False)


def test_descriptors_are_kept_for_the_next_run(
    colour: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_benchmark(tmp_path / "data")
    first = evaluate(colour, "roxford5k", tmp_path / "data", out=tmp_path / "out", longest_side=32, progress=False)
    monkeypatch.setattr("hamlet.retrieval.extraction._run", None)
    again = evaluate(colour, "roxford5k", tmp_path / "data", out=tmp_path / "out", longest_side=32, progress=False)
    assert again["metrics"] == first["metrics"]


def test_folder_is_searched_leaving_each_image_out(colour: nn.Module, tmp_path: Path) -> None:
    for label, names in {"warm": ["red", "rose", "brick"], "cold": ["green", "blue"], "lone": ["rose"]}.items():
        (tmp_path / label).mkdir()
        for name in names:
            Image.new("RGB", (8, 8), COLOURS[name]).save(tmp_path / label / f"{name}.png")
    found = evaluate(colour, "folder", tmp_path, longest_side=32, ks=(1, 2), progress=False)
    vectors = {
        f"{label}/{name}": np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name])
        for label, names in {"cold": ["blue", "green"], "lone": ["rose"], "warm": ["brick", "red", "rose"]}.items()
        for name in names
    }
    precisions, first = [], []
    for query, vector in vectors.items():
        others = sorted((name for name in vectors if name != query), key=lambda name: -float(vectors[name] @ vector))
        hits = [name.split("/")[0] == query.split("/")[0] for name in others]
        if any(hits):
            precisions.append(np.mean([sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]))
            first.append(hits[0])
    assert len(precisions) == 5
    assert found["metrics"]["all"]["map"] == pytest.approx(np.mean(precisions))
    assert found["metrics"]["all"]["p@1"] == pytest.approx(np.mean(first))
    assert found["database"] == found["queries"] == 6


def test_unreadable_images_of_a_folder_rank_last(colour: nn.Module, tmp_path: Path) -> None:
    for label, names in {"warm": ["red", "rose"], "lone": ["blue"]}.items():
        (tmp_path / label).mkdir()
        for name in names:
            Image.new("RGB", (8, 8), COLOURS[name]).save(tmp_path / label / f"{name}.png")
    (tmp_path / "warm" / "broken.png").write_bytes(b"")
    found = evaluate(colour, "folder", tmp_path, longest_side=32, ks=(1,), progress=False)
    assert (found["database"], found["queries"]) == (4, 3)
    # Red finds rose, blue, and last the broken one; rose likewise; blue has nothing to find.
    assert found["metrics"]["all"] == pytest.approx({"map": (1 + 2 / 3) / 2, "p@1": 1})


def test_bad_input(colour: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset: got 'imagenet', expected one of oxford5k, paris6k, roxford5k"):
        evaluate(colour, "imagenet", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="every class has a single image"):
        evaluate(colour, "folder", tmp_path, progress=False)
    (tmp_path / "a/c.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 database images can be read, first: the file is empty"):
        evaluate(colour, "folder", tmp_path, progress=False)


def test_real_model(write_pictures: Callable[[Path, int], list[str]], tmp_path: Path) -> None:
    write_pictures(tmp_path, 6)
    torch.manual_seed(0)
    network = hamlet.create_model("hamlet_mobilenetv3_small", descriptor_dim=16)
    found = evaluate(network, "folder", tmp_path, longest_side=64, ks=(1,), progress=False)
    assert 0 < found["metrics"]["all"]["map"] <= 1
    assert found["cost"]["descriptor_bytes"] == 64
    assert found["cost"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert found["unreadable"] == []

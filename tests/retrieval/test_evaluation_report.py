from __future__ import annotations

import html
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import hamlet
from hamlet.images import ImageList
from hamlet.retrieval.datasets import Labelled, Pictures, Ranking, load_benchmark
from hamlet.retrieval.evaluate import evaluate
from hamlet.retrieval.evaluation_report import Found, interpolated_precision
from tests.retrieval.browser import photograph

# Shades of red to green: the more green, the farther from red.
SHADES = {"warm/a": 0, "warm/b": 40, "cold/c": 80, "warm/d": 120, "cold/e": 250, "lone/f": 160}


class Colour(nn.Module):
    name = "colour"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale, self.config = nn.Parameter(torch.ones(3)), config

    def forward(self, images: list[Tensor] | Tensor) -> Tensor:
        return nn.functional.normalize(torch.stack([image.mean(dim=(1, 2)) for image in images]) * self.scale, dim=1)


def write_shades(folder: Path) -> None:
    for name, green in SHADES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (200, green, 0)).save(folder / f"{name}.png")


def rows_of(page: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(query, note, (verdict, name) of its results) of each row, in order."""
    rows = []
    for article in page.split('<article class="row">')[1:]:
        pictures = re.findall(
            r'<figure class="picture ?(\w*)">.*?<span class="name" title="([^"]*)"', article, re.DOTALL
        )
        note = re.findall(r'<p class="note">(.*?)</p>', article)[0]
        rows.append(
            (html.unescape(pictures[0][1]), note, [(verdict, html.unescape(name)) for verdict, name in pictures[1:]])
        )
    return rows


def table_of(page: str, title: str) -> list[list[str]]:
    body = page.split(f"<h2>{title}</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("</tr>")[:-1]]


def test_the_worst_queries_come_first_with_what_they_found(model: nn.Module, tmp_path: Path) -> None:
    write_shades(tmp_path / "in")
    (tmp_path / "in" / "cold" / "broken.png").write_bytes(b"")
    found = evaluate(Colour(model.config), "folder", tmp_path / "in", html=tmp_path / "page.html", progress=False)
    page = (tmp_path / "page.html").read_text()
    rows = rows_of(page)
    angles = {f"{name}.png": np.arctan2(green, 200) for name, green in SHADES.items()}
    precision = {}
    for query, angle in angles.items():
        ranked = sorted((name for name in angles if name != query), key=lambda name: abs(angles[name] - angle))
        ranked.append("cold/broken.png")
        hits = [name.split("/")[0] == query.split("/")[0] for name in ranked]
        if any(hits):
            precision[query] = np.mean([sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit])
        shown = next((row for row in rows if row[0] == query), None)
        assert (shown is None) == (query not in precision)
        if shown is not None:
            assert shown[1] == f"average precision {100 * precision[query]:.1f}%"
            assert shown[2] == [("correct" if hit else "wrong", name) for hit, name in zip(hits, ranked, strict=True)]
    order = sorted(precision, key=lambda query: precision[query])
    assert [row[0] for row in rows] == order
    assert table_of(page, "Average precision of all 5 queries") == [
        [query, f"{100 * precision[query]:.4g}"] for query in order
    ]
    assert found["metrics"]["all"]["map"] == pytest.approx(np.mean(list(precision.values())))
    assert f"{100 * found['metrics']['all']['map']:.4g}" in page
    assert "the file is empty" in page
    assert page.count('class="plot"') == 1
    assert "://" not in page


def test_junk_is_shown_as_neither(model: nn.Module, tmp_path: Path) -> None:
    for name, green in {"near": 10, "junk": 5, "far": 90, "query": 0}.items():
        (tmp_path / "jpg").mkdir(exist_ok=True)
        Image.new("RGB", (60, 40), (200, green, 0)).save(tmp_path / "jpg" / f"{name}.jpg", quality=95)
    gnd = [{"bbx": [10, 5, 50, 35], "easy": [0], "hard": [], "junk": [1]}]
    content = {"gnd": gnd, "imlist": ["near", "junk", "far"], "qimlist": ["query"]}
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    evaluate(Colour(model.config), "roxford5k", tmp_path, html=tmp_path / "page.html", progress=False)
    page = (tmp_path / "page.html").read_text()
    results = [("junk", "junk.jpg"), ("correct", "near.jpg"), ("wrong", "far.jpg")]
    assert rows_of(page) == [("query.jpg", "average precision 100.0%", results)]
    # Easy, medium and hard: the last has no answer.
    assert table_of(page, "Average precision of the one query") == [["query.jpg", "100", "100", "–"]]  # noqa: RUF001
    # The query is shown as it was cropped: 40 x 30.
    assert 'width="40" height="30"' in page
    assert "1 queries, cropped, against 3 images" in page


def test_maps_are_drawn_over_the_queries(tmp_path: Path) -> None:
    write_shades(tmp_path / "in")
    torch.manual_seed(0)
    network = hamlet.create_model("hamlet_mobilenetv3_small", descriptor_dim=16)
    evaluate(network, "folder", tmp_path / "in", html=tmp_path / "a.html", longest_side=64, progress=False)
    page = (tmp_path / "a.html").read_text()
    for name in ("radius", "gate", "pooling"):
        assert page.count(f"<figcaption>{name}</figcaption>") == len(rows_of(page)) == 5
    assert network.training


def loop(hits: Sequence[bool], positives: int) -> list[float]:
    """Every point of the curve, and the largest precision at or beyond each recall."""
    points = [(100 * sum(hits[: i + 1]), sum(hits[: i + 1]) / (i + 1)) for i in range(len(hits)) if hits[i]]
    return [
        max((precision for recall, precision in points if recall >= level * positives), default=0.0)
        for level in range(101)
    ]


@given(data=st.data())
def test_interpolated_precision_agrees_with_a_loop(data: st.DataObject) -> None:
    hits = data.draw(st.lists(st.booleans(), max_size=30))
    positives = data.draw(st.integers(max(1, sum(hits)), sum(hits) + 5))
    assert interpolated_precision(np.array(hits, dtype=bool), positives) == pytest.approx(loop(hits, positives))


def test_the_curve_is_the_mean_of_the_queries_that_have_an_answer() -> None:
    images = [Pictures("d", ImageList(Path("."), ["a", "b", "c"]))]
    queries = Pictures("q", ImageList(Path("."), ["x", "y", "z"]))
    found = Found(Labelled(images, queries, np.array([0, 0, 1]), np.array([0, 1, 5])), 3)
    assert found.precisions == {}
    found.add(Ranking(np.arange(3), np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]]), np.zeros((3, 3), dtype=np.float32)))
    assert found.precisions.keys() == {"all"}
    assert found.precisions["all"] == pytest.approx(np.full(101, (1 + 1 / 3) / 2))


def test_what_could_not_be_read_finds_nothing_on_the_page(model: nn.Module, tmp_path: Path) -> None:
    write_shades(tmp_path)
    rows = ["warm/a.png,warm,database", "cold/c.png,cold,database", "warm/b.png,warm,query", "cold/e.png,cold,query"]
    (tmp_path / "mine.csv").write_text("\n".join(["image,label,role", *rows]))
    (tmp_path / "cold" / "e.png").write_bytes(b"")
    evaluate(Colour(model.config), "csv", tmp_path / "mine.csv", html=tmp_path / "page.html", progress=False)
    page = (tmp_path / "page.html").read_text()
    assert [row[0] for row in rows_of(page)] == ["cold/e.png", "warm/b.png"]
    assert "no results" in page
    assert page.count("the file is empty") == 2


def test_links_that_leave_the_folder_are_not_shown(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_shades(folder)
    (folder / "warm" / "a.png").rename(tmp_path / "secret.png")
    for name in ("warm/a.png", "cold/e.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret.png")
    rows = ["warm/a.png,warm,database", "cold/c.png,cold,database", "warm/b.png,warm,query", "cold/e.png,cold,query"]
    (folder / "mine.csv").write_text("\n".join(["image,label,role", *rows]))
    evaluate(Colour(model.config), "csv", folder / "mine.csv", html=tmp_path / "page.html", progress=False)
    page = html.unescape((tmp_path / "page.html").read_text())
    # Once each as a query and as a result.
    assert page.count("'cold/e.png': got a link that leaves the folder") == 1
    assert page.count("'warm/a.png': got a link that leaves the folder") == 1
    assert [row[0] for row in rows_of(page)] == ["cold/e.png", "warm/b.png"]


def test_a_browser_shows_the_page(browser: str, model: nn.Module, tmp_path: Path) -> None:
    write_shades(tmp_path / "in")
    path = tmp_path / "page.html"
    evaluate(Colour(model.config), "folder", tmp_path / "in", html=path, progress=False)
    pixels = photograph(browser, path, (1200, 2400))
    for green in SHADES.values():
        assert (np.abs(pixels - [200, green, 0]).sum(axis=2) < 12).sum() > 40 * 30


def test_verdicts_of_a_folder_leave_the_query_out(tmp_path: Path) -> None:
    write_shades(tmp_path)
    benchmark = load_benchmark("folder", tmp_path)
    # cold/c, cold/e, lone/f, warm/a, warm/b, warm/d.
    assert benchmark.verdicts(0, np.arange(6), "all").tolist() == [-1, 1, 0, 0, 0, 0]
    assert [benchmark.positives(query, "all") for query in range(6)] == [1, 1, 0, 2, 2, 2]
    assert benchmark.picture(3) == (benchmark.database[0].images, "warm/a.png")
    with pytest.raises(ValueError, match="row: got 6, expected a number below the 6 database images"):
        benchmark.picture(6)

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from hamlet.retrieval.report import (
    Figure,
    Picture,
    Ranked,
    RankedSection,
    Section,
    Table,
    Text,
    overlay,
    write_report,
)
from tests.retrieval.browser import photograph


def plain(red: int = 0, height: int = 30, width: int = 40) -> torch.Tensor:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0] = red
    return image


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5)).save(buffer, format="PNG")
    return buffer.getvalue()


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())

    def images(self) -> list[Image.Image]:
        sources = [attrs["src"] or "" for tag, attrs in self.elements if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in sources]

    def classes(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.elements)


def test_everything_that_was_given_is_shown(tmp_path: Path) -> None:
    query = Picture(plain(200), "query.jpg", overlays={"pooling": overlay(plain(), torch.rand(3, 3))})
    results = [
        Picture(plain(100), "near.jpg", score=0.9876, correct=True),
        Picture(plain(50), "far.jpg", score=-0.25, correct=False),
        Picture(plain(10), "unknown.jpg", score=0.1),
    ]
    sections: list[Section] = [
        Text("About", "One.\n\nTwo."),
        Table("Accuracy", ["model", "mAP", "P@1"], [["hamlet", 0.123456, None], ["gem", 7, "n/a"]], caption="At 224."),
        Figure("Loss", png(), caption="By step"),
        RankedSection("Queries", [Ranked(query, results, note="AP 0.5")]),
    ]
    path = write_report(tmp_path / "new" / "report.html", "Search", sections, lead="A lead.")
    page = Page(path)
    for words in ("Search", "A lead.", "About", "One.", "Two.", "At 224.", "By step", "AP 0.5", "pooling"):
        assert words in page.words
    cells = [word for word in page.words if word in ("hamlet", "0.1235", "–", "gem", "7", "n/a")]  # noqa: RUF001
    assert cells == ["hamlet", "0.1235", "–", "gem", "7", "n/a"]  # noqa: RUF001
    assert [word for word in page.words if re.fullmatch(r"-?0\.\d{3}", word)] == ["0.988", "-0.250", "0.100"]
    assert (page.classes("correct"), page.classes("wrong")) == (1, 1)
    assert [word for word in page.words if word in "✓✗"] == ["✓", "✗"]
    figure, *pictures = page.images()
    assert figure.format == "PNG"
    assert [picture.format for picture in pictures] == ["JPEG"] * 5
    reds = [picture.getpixel((20, 15))[0] for picture in pictures]  # type: ignore[index]
    assert np.allclose([reds[0], *reds[2:]], [200, 100, 50, 10], atol=3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    rows = [Ranked(Picture(plain(), "q"), [Picture(plain(), "r", score=0.5)])]
    path = write_report(tmp_path / "a.html", "Title", [Figure("f", png()), RankedSection("s", rows)])
    page = Page(path)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert len(sources) == 3
    assert all((source or "").startswith("data:image/") for source in sources)
    assert not any("href" in attrs or "srcset" in attrs for _, attrs in page.elements)
    assert "url(" not in path.read_text()
    policy = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "\"><script>alert('x')</script>"
    picture = Picture(plain(), evil, score=0.5, correct=True, overlays={evil: overlay(plain(), torch.rand(2, 2))})
    sections: list[Section] = [
        Text(evil, evil),
        Table(evil, [evil], [[evil]], caption=evil),
        Figure(evil, png(), caption=evil),
        RankedSection(evil, [Ranked(picture, [picture, Picture(tmp_path / "<b>", evil)], note=evil)], caption=evil),
    ]
    path = write_report(tmp_path / "a.html", evil, sections, lead=evil)
    page = Page(path)
    assert "script" not in {tag for tag, _ in page.elements}
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    # Shown as text: twice the title, lead, two texts, four of the table, two of the figure, and so on.
    assert sum(evil in words for words in page.words) >= 15


def test_pictures_come_from_paths_and_shrink(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"")
    rows = [Ranked(Picture(tmp_path / "large.png", "large"), [Picture(str(tmp_path / "broken.png"), "broken")])]
    path = write_report(tmp_path / "a.html", "Title", [RankedSection("s", rows)])
    page = Page(path)
    (image,) = page.images()
    assert image.size == (320, 80)
    assert "the file is empty" in page.words
    assert path.stat().st_size < 20_000


def test_bad_sections_leave_the_old_report(tmp_path: Path) -> None:
    path = write_report(tmp_path / "a.html", "Old", [])
    before = path.read_text()
    bad: list[tuple[object, type[Exception], str]] = [
        (Table("t", ["a", "b"], [[1, 2], [1]]), ValueError, "t: row 1 has 1 cells, expected 2"),
        (Figure("f", b"GIF89a"), ValueError, "f: got 6 bytes, expected a PNG"),
        ("text", TypeError, "sections: got str"),
        (RankedSection("s", [Ranked(Picture(torch.zeros(3, 2, 2), "q"), [])]), TypeError, "image: got torch.float32"),
    ]
    for section, error, message in bad:
        with pytest.raises(error, match=message):
            write_report(path, "New", [section])  # type: ignore[list-item]
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_overlay_takes_colours_from_the_map() -> None:
    colours = matplotlib.colormaps["viridis"]
    values = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    drawn = overlay(plain(255, 40, 60), values, limits=(0, 1), colormap="viridis", opacity=1.0)
    assert drawn.size == (60, 40)
    for corner, value in {(0, 0): 0.0, (59, 0): 1.0, (0, 39): 0.5, (59, 39): 0.25}.items():
        assert np.allclose(np.asarray(drawn)[corner[1], corner[0]], np.array(colours(value)[:3]) * 255, atol=1)
    assert overlay(plain(255), values, opacity=0.0).getpixel((3, 3)) == (255, 0, 0)


def test_overlay_leaves_the_padding_out() -> None:
    values = torch.rand(2, 3)
    padded = torch.full((5, 4), 99.0)
    padded[:2, :3] = values
    extent = torch.tensor([2, 3])
    expected = overlay(plain(), values)
    assert overlay(plain(), padded, extent=extent).tobytes() == expected.tobytes()
    assert overlay(plain(), padded).tobytes() != expected.tobytes()


def test_overlay_of_an_even_map() -> None:
    assert overlay(plain(), torch.full((2, 2), 3.0), opacity=1.0).getpixel((0, 0)) == (0, 0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.rand(3)}, r"values: got shape \(3,\)"),
        ({"values": torch.tensor([[torch.nan]])}, "values: got NaN"),
        ({"extent": [3, 1]}, r"extent: got \(3, 1\)"),
        ({"opacity": 2}, "opacity: got 2"),
    ],
)
def test_overlay_bad_input(change: dict[str, object], message: str) -> None:
    arguments = {"values": torch.rand(2, 2), **change}
    with pytest.raises(ValueError, match=message):
        overlay(plain(), **arguments)  # type: ignore[arg-type]


def test_a_browser_shows_the_pictures(browser: str, tmp_path: Path) -> None:
    rows = [Ranked(Picture(plain(255, 200, 200), "q"), [Picture(plain(255, 200, 200), "r", score=0.5, correct=True)])]
    path = write_report(tmp_path / "a.html", "Title", [RankedSection("s", rows)])
    pixels = photograph(browser, path, (900, 600))
    red = (np.abs(pixels - [254, 0, 0]).sum(axis=2) < 12).sum()
    # Two red squares, of at least a hundred pixels a side.
    assert red > 2 * 100 * 100

"""Reports: one HTML file that opens offline, with pictures, ranked results, maps, tables and figures inside it.

A report is a title and a sequence of sections: :class:`Text`, :class:`Table`, :class:`Figure`, :class:`RankedSection`.
:func:`write_report` renders them with one template; everything a caller passes is escaped, no script runs, and a
content security policy keeps the page from loading anything.

>>> import tempfile, torch
>>> photo = torch.zeros(3, 60, 80, dtype=torch.uint8)
>>> row = Ranked(Picture(photo, "tower"), [Picture(photo, "tower/2.jpg", score=0.91, correct=True)])
>>> with tempfile.TemporaryDirectory() as folder:
...     path = write_report(
...         Path(folder, "report.html"),
...         "Search",
...         [Table("Accuracy", ["model", "mAP"], [["hamlet", 0.83]]), RankedSection("Queries", [row])],
...     )
...     "tower/2.jpg" in path.read_text()
True
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

import jinja2
import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hamlet.files import replacing
from hamlet.images import UnreadableImage, load_image
from hamlet.models import Model
from hamlet.retrieval.cost import evaluating

THUMBNAIL_SIDE = 320
FIGURE_BYTES = 8 << 20
MAPS_CAPTION = (
    "Below a query: the half-width of the attention window and the gate on the finest level, and the weights of the "
    "pooling, as far as the model has them; colours run from the smallest to the largest value of each map."
)
# Maps are computed on a picture of this side: finer than they are shown.
_MAP_SIDE = 512


@dataclass(frozen=True)
class Picture:
    """A picture in a ranked row.

    Args:
        image: uint8 tensor (3, H, W), a PIL image, or a path to load; a path that cannot be read shows its reason
            instead, and so does an error in place of an image.
        caption: what it is, usually its id.
        score: similarity to the query; None for a query.
        correct: whether it shows the query's instance; None where that is not known.
        junk: whether the ground truth counts it as neither.
        overlays: name -> picture with a map drawn over it, see :func:`overlay`; drawn small, below the picture.
    """

    image: Tensor | Image.Image | Path | str | UnreadableImage
    caption: str
    score: float | None = None
    correct: bool | None = None
    junk: bool = False
    overlays: Mapping[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranked:
    """A query and its results, best first; ``note`` is a short line beside it, such as its average precision."""

    query: Picture
    results: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True)
class RankedSection:
    """Ranked rows under a title."""

    title: str
    rows: Sequence[Ranked]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table: floats are shown with four significant digits, None as a dash, all else as ``str`` gives it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing, as the bytes of a PNG file (``figure.savefig(buffer, format="png")``)."""

    title: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; blank lines part paragraphs."""

    title: str
    body: str


Section: TypeAlias = Text | Table | Figure | RankedSection


def write_report(path: Path | str, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write a self-contained HTML report, atomically, and return its path.

    Args:
        path: where; its folder is made where it is missing.
        title: heading of the page.
        sections: what it shows, in order.
        lead: a sentence or two below the heading.

    Raises:
        ValueError: a table row whose length is not that of its columns, or a figure that is not a PNG of at most 8 MiB.
        TypeError: a section of another type.
    """
    for section in sections:
        _check(section)
    page = _environment().get_template("report.html").render(title=title, lead=lead, sections=sections)
    path = Path(path)
    with replacing(path) as file:
        # A name may hold bytes that are no text.
        file.write(page.encode(errors="backslashreplace"))
    return path


def overlay(
    image: Tensor | Image.Image,
    values: Tensor,
    *,
    extent: Tensor | Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
    colormap: str = "inferno",
    opacity: float = 0.55,
) -> Image.Image:
    """Draw a map over the picture that it was computed from.

    Args:
        image: uint8 tensor (3, H, W) or PIL image, without padding.
        values: (h, w) map on any grid, such as a pooling map, or one head's radius.
        extent: valid (height, width) of the map inside its padded grid; the rest of the grid is left out.
        limits: values at the two ends of the colours; default the smallest and largest value shown.
        colormap: a name that matplotlib knows.
        opacity: of the map, 0 to 1.

    Returns:
        RGB image of the picture's size.

    >>> overlay(torch.zeros(3, 8, 6, dtype=torch.uint8), torch.eye(4), opacity=1.0).getpixel((5, 0))
    (0, 0, 3)
    """
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"values: got shape {tuple(values.shape)}, expected (h, w) with at least one element")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: got {opacity}, expected 0 to 1")
    picture = _as_pil(image)
    grid = values.detach().float().cpu().numpy()
    if extent is not None:
        height, width = (int(side) for side in extent)
        if not (1 <= height <= grid.shape[0] and 1 <= width <= grid.shape[1]):
            raise ValueError(f"extent: got ({height}, {width}), expected within the map's grid {grid.shape}")
        grid = grid[:height, :width]
    if not np.isfinite(grid).all():
        raise ValueError("values: got NaN or infinity, expected finite numbers")
    low, high = limits if limits is not None else (float(grid.min()), float(grid.max()))
    unit = np.clip((grid - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    # Interpolating values and colouring afterwards keeps every shown colour on the colour bar.
    smooth = np.asarray(Image.fromarray(unit).resize(picture.size, Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps[colormap](smooth, bytes=True)[..., :3]
    return Image.blend(picture, Image.fromarray(np.ascontiguousarray(colours)), opacity)


def picture_with_maps(model: nn.Module, path: Path, name: str, box: Sequence[float] | None = None) -> Picture:
    """A query as a model saw it, cut to its box, with the model's maps if it is one of this package's."""
    try:
        image = load_image(path, _MAP_SIDE, box=box)
    except UnreadableImage:
        return Picture(path, name)
    if not isinstance(model, Model):
        return Picture(image, name)
    device = next(model.parameters()).device
    with evaluating(model):
        maps = draw_maps(model, image.to(device).float() / 255, _as_pil(image))
    return Picture(image, name, overlays=maps)


@torch.no_grad()
def draw_maps(model: nn.Module, image: Tensor, picture: Image.Image) -> dict[str, Image.Image]:
    """What a model shows of its inner workings on an image, drawn over a picture of it.

    Args:
        model: one of this package's, in evaluation mode.
        image: float (3, H, W) in [0, 1], on the model's device.
        picture: what to draw over.

    Returns:
        "radius" and "gate" of the finest level, averaged over heads and key levels, the radius in pixels of the image,
        where the model has them; and "pooling", the weights of the pooling.
    """
    _, maps = model(image[None], return_maps=True)
    drawn = {}
    finest = range(len(maps.radius[0]) if maps.radius else 0)
    radii = [
        maps.radius[0][level][0].mean(-1) * image.shape[-1] / maps.radius[level][level].shape[2]
        for level in finest
        if maps.radius[0][level] is not None and maps.radius[level][level] is not None
    ]
    gates = [maps.gate[0][level][0].mean(-1) for level in finest if maps.gate and maps.gate[0][level] is not None]
    if radii:
        drawn["radius"] = overlay(picture, torch.stack(radii).mean(0), colormap="viridis")
    if gates:
        drawn["gate"] = overlay(picture, torch.stack(gates).mean(0), colormap="cividis")
    drawn["pooling"] = overlay(picture, maps.pooling[0])
    return drawn


def _as_pil(image: Tensor | Image.Image | Path | str | UnreadableImage) -> Image.Image:
    if isinstance(image, UnreadableImage):
        raise image
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, (str, Path)):
        image = load_image(image, longest_side=THUMBNAIL_SIDE)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        got = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image: got {got}, expected a uint8 tensor (3, H, W), a PIL image or a path")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _thumbnail(image: Tensor | Image.Image | Path | str | UnreadableImage) -> dict[str, object]:
    """What the template needs to show a picture: a JPEG data URI and its size, or the reason why there is none."""
    try:
        picture = _as_pil(image)
    except UnreadableImage as unreadable:
        return {"reason": str(unreadable)}
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82, optimize=True)
    return {"uri": _data_uri("image/jpeg", buffer.getvalue()), "width": picture.width, "height": picture.height}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _cell(value: object) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(section: Section) -> None:
    if isinstance(section, Table):
        for number, row in enumerate(section.rows):
            if len(row) != len(section.columns):
                raise ValueError(f"{section.title}: row {number} has {len(row)} cells, expected {len(section.columns)}")
    elif isinstance(section, Figure):
        if not section.png.startswith(b"\x89PNG\r\n\x1a\n") or len(section.png) > FIGURE_BYTES:
            raise ValueError(f"{section.title}: got {len(section.png)} bytes, expected a PNG of at most {FIGURE_BYTES}")
    elif not isinstance(section, (Text, RankedSection)):
        raise TypeError(f"sections: got {type(section).__name__}, expected one of {Section.__args__}")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hamlet.retrieval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        thumbnail=_thumbnail,
        png=lambda content: _data_uri("image/png", content),
        cell=_cell,
        kind=lambda section: type(section).__name__,
    )
    return environment

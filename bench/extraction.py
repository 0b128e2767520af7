"""How fast images become descriptors, and where the time goes: ``python -m bench.extraction``.

The pictures are JPEG files of 1600 x 1200 pixels and of other shapes as large, made from the photographs that
scikit-image carries. Batches of them are ragged lists: no two neighbours have one shape.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

import hamlet
from hamlet.images import ImageList, list_images, load_image
from hamlet.retrieval.cost import evaluating
from hamlet.retrieval.extraction import extract

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "retina", "rocket")
SHAPES = ((1600, 1200), (1200, 1600), (1600, 1067), (1400, 1400), (1600, 900))
BATCHES = (1, 8)
STEPS = ("decode", "resize", "to floats", "backbone", "the rest of the model")


def write_pictures(folder: Path, count: int) -> ImageList:
    """JPEG files of the shapes in turn."""
    for number, (photograph, shape) in zip(range(count), itertools.cycle(zip(PHOTOGRAPHS, SHAPES, strict=True))):
        pixels = getattr(skimage.data, photograph)()
        picture = Image.fromarray(pixels).convert("RGB").resize(shape, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.jpg", quality=90)
    return list_images(folder)


def images_per_second(model: torch.nn.Module, images: ImageList, side: int, batch: int, workers: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        extract(model, images, out, longest_side=side, batch_size=batch, workers=workers, progress=False)
        return len(images) / (time.perf_counter() - start)


def where_time_goes(model: hamlet.models.Hamlet, images: ImageList, side: int, batch: int) -> dict[str, float]:
    """Seconds an image of each step, one after the other in one process."""
    seconds: Counter[str] = Counter()

    @contextmanager
    def clock(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[step] += time.perf_counter() - start

    paths = [images.path(name) for name in images.names]
    with evaluating(model):
        for start in range(0, len(paths), batch):
            chosen = paths[start : start + batch]
            with clock("decode"):
                for path in chosen:
                    with Image.open(path) as file:
                        file.draft(None, (2 * side, 2 * side))
                        file.load()
            with clock("decode and resize"):
                loaded = [load_image(path, side) for path in chosen]
            with clock("to floats"):
                pictures = [pixels.float().div_(255) for pixels in loaded]
            with clock("backbone"):
                features, extents = model.forward_features(pictures)
            with clock("the rest of the model"):
                model.forward_head(features, extents)
    seconds["resize"] = seconds.pop("decode and resize") - seconds["decode"]
    return {step: seconds[step] / len(images) for step in STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hamlet_resnet18")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="longest sides, in pixels")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = hamlet.create_model(arguments.model).eval()
    console = Console(width=100)
    console.print(
        f"{arguments.model}, {arguments.images} images, {torch.get_num_threads()} threads, "
        f"{arguments.workers} decoding processes, torch {torch.__version__}, {platform.machine()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        images = write_pictures(Path(folder), arguments.images)
        extract(model, ImageList(images.root, images.names[:2]), Path(folder, "warm"), progress=False)
        for side in arguments.sides:
            table = Table(title=f"longest side {side}", title_justify="left", box=box.SIMPLE_HEAD)
            for heading in ("images a batch", "images/s", *STEPS):
                table.add_column(heading, justify="right")
            for batch in BATCHES:
                speed = images_per_second(model, images, side, batch, arguments.workers)
                spent = where_time_goes(model, images, side, batch)
                shares = [f"{1e3 * each:.0f} ms ({100 * each / sum(spent.values()):.0f}%)" for each in spent.values()]
                table.add_row(str(batch), f"{speed:.2f}", *shares)
            console.print(table)


if __name__ == "__main__":
    main()

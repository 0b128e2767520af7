"""Descriptors of many images: decoded by workers, written in shards, resumed where a killed run left off.

Processes that ``torchrun`` or ``accelerate launch`` started, on one host or several, share the shards of a folder that
all of them reach. What lies in the folder is told in :mod:`hamlet.retrieval.shards`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hamlet import models, processes
from hamlet.files import printable
from hamlet.images import ImageList, UnreadableImage, load_image
from hamlet.retrieval import shards
from hamlet.retrieval.cost import evaluating
from hamlet.retrieval.shards import DTYPES, Extraction

SCALES = (0.7071, 1.0, 1.4142)
"""What multi-scale descriptors are made of, unless other scales are given."""

Box = Sequence[float]


def extract(
    model: nn.Module,
    images: ImageList,
    out: Path | str,
    *,
    boxes: Sequence[Box | None] | None = None,
    longest_side: int = 1024,
    scales: Sequence[float] = (1.0,),
    dtype: str = "float32",
    batch_size: int = 8,
    shard_size: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Extraction:
    """Compute the descriptors of a list of images.

    Killed at any moment and called again with the same arguments it goes on, re-doing at most one shard; called again
    when done it reads the result. Called in several processes at once, as ``torchrun`` starts them, each describes its
    share of the shards, and all return the whole. Images that cannot be read, and those whose descriptor is not finite,
    are reported and passed over.

    Args:
        model: takes a list of float images (3, h, w) in [0, 1] and returns (B, dim); it runs on the device that it is
            on.
        images: see :func:`hamlet.images.list_images`.
        out: folder of the extraction, which all processes must reach.
        boxes: for each image (left, top, right, bottom) to cut out first, or None.
        longest_side: see :func:`hamlet.images.load_image`.
        scales: see :func:`describe`.
        dtype: in which descriptors are kept: "float32", or "float16", which takes half the space and rounds the
            numbers to 11 bits.
        batch_size: images a call of the model.
        shard_size: images a shard; a run that resumes keeps the size that it began with.
        workers: processes that decode; default one for each processor beyond the first, at most 8, shared among the
            processes of this host, and none for fewer images than two batches.
        progress: show a bar, and the failures at the end, on stderr.

    Raises:
        ValueError: settings out of range; ``out`` holds the extraction of another model, other images or other
            settings, or something else altogether; another run is at work in it.
    """
    for name, value in {"longest_side": longest_side, "batch_size": batch_size, "shard_size": shard_size}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    check_scales(scales)
    if workers is not None and workers < 0:
        raise ValueError(f"workers: got {workers}, expected at least 0")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"boxes: got {len(boxes)}, expected one for each of the {len(images)} images")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    out = Path(out)
    settings = {
        # Any module with a name, a config and weights has a fingerprint.
        "model": models.fingerprint(model),  # type: ignore[arg-type]
        "images": _digest(images, boxes),
        "longest_side": longest_side,
        "scales": [float(scale) for scale in scales],
        "dtype": dtype,
    }
    console = Console(stderr=True, quiet=not progress or processes.rank() > 0)
    if not processes.from_first(lambda: shards.is_done(out, settings)):
        pictures = _Pictures(images, boxes, longest_side)
        _extract(model, scales, pictures, out, settings, shard_size, batch_size, workers, console)
    shards.wait_for([out / "manifest.json"])
    result = shards.read(out, settings)
    if result is None:
        raise ValueError(f"{out}: not the folder of the first process, expected one that all processes reach")
    # The first process may remove the folder as soon as it has the result: the others have theirs by then.
    processes.wait_for_all()
    _show_failures(console, result.failures)
    return result


def describe(model: nn.Module, pictures: Sequence[Tensor], scales: Sequence[float] = (1.0,)) -> Tensor:
    """Descriptors of pictures, averaged over scales: each scale's is L2-normalised, and so is their mean.

    Args:
        model: takes a list of float images (3, h, w) and returns (B, dim).
        pictures: float (3, h, w) in [0, 1], of any sizes.
        scales: factors of the pictures' sides; what is above 1 enlarges. Resized by bilinear interpolation, with
            antialiasing.

    Returns:
        float32 (B, dim).

    Raises:
        ValueError: no scale, or one that is not positive and finite.

    Source: Radenović, Tolias and Chum, TPAMI 2018, multi-scale representation, with average pooling.

    >>> def brightness(pictures):
    ...     return torch.stack([picture.mean(dim=(1, 2)) for picture in pictures])
    >>> describe(brightness, [torch.tensor([3.0, 4.0, 0.0]).view(3, 1, 1).expand(3, 9, 6)], SCALES)
    tensor([[0.6000, 0.8000, 0.0000]])
    """
    check_scales(scales)
    described = [
        nn.functional.normalize(model([_resize(picture, scale) for picture in pictures]).float(), dim=1)
        for scale in scales
    ]
    return nn.functional.normalize(torch.stack(described).mean(dim=0), dim=1)


def check_scales(scales: Sequence[float]) -> None:
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"scales: got {tuple(scales)}, expected at least one, each positive and finite")


def _resize(picture: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    if size == list(picture.shape[1:]):
        return picture
    return nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]


class _Pictures(Dataset[tuple[int, NDArray[np.uint8] | str]]):
    """(position, pixels (3, H, W)), or (position, reason) of an image that cannot be read."""

    def __init__(self, images: ImageList, boxes: Sequence[Box | None] | None, longest_side: int) -> None:
        self.images, self.boxes, self.longest_side = images, boxes, longest_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[int, NDArray[np.uint8] | str]:
        box = self.boxes[position] if self.boxes is not None else None
        try:
            path = self.images.path(self.images.names[position])
            # Arrays cross processes through a pipe; tensors would need shared memory, which containers keep small.
            return position, load_image(path, self.longest_side, box=box).numpy()
        except UnreadableImage as unreadable:
            return position, str(unreadable)
        except ValueError:
            return position, "the path leaves the folder"


def _extract(
    model: nn.Module,
    scales: Sequence[float],
    pictures: _Pictures,
    out: Path,
    settings: dict[str, Any],
    shard_size: int,
    batch_size: int,
    workers: int | None,
    console: Console,
) -> None:
    """Write what is missing, each process its share, and put it together."""
    images = pictures.images
    with ExitStack() as held:

        def begin() -> list[range] | None:
            held.enter_context(shards.alone_in(out))
            if shards.read(out, settings) is not None:  # Another run ended since.
                shards.clean(out)
                return None
            return shards.begin(out, settings, len(images), shard_size)

        todo = processes.from_first(begin)
        if todo is None:
            return
        if shards.wait_for([out / "manifest.json"]) or shards.read_manifest(out, settings) is None:
            raise ValueError(f"{out}: not the folder of the first process, expected one that all processes reach")
        _run(model, scales, pictures, out, settings["dtype"], todo, batch_size, workers, console)
        processes.wait_for_all()

        def finish() -> None:
            shards.assemble(out, settings, images)
            shards.clean(out)

        processes.from_first(finish)


def _run(
    model: nn.Module,
    scales: Sequence[float],
    pictures: _Pictures,
    out: Path,
    dtype: str,
    todo: Sequence[range],
    batch_size: int,
    workers: int | None,
    console: Console,
) -> None:
    """Write this process's shards of those that are to be written."""
    mine = todo[processes.rank() :: processes.count()]
    batches = [list(shard[i : i + batch_size]) for shard in mine for i in range(0, len(shard), batch_size)]
    if workers is None:
        workers = _workers() if len(batches) > 1 else 0
    # The workers are forked before the bar's thread starts.
    loaded = iter(DataLoader(pictures, batch_sampler=batches, num_workers=workers, collate_fn=list))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar, evaluating(model):
        others = "" if processes.count() == 1 else f", the first of {processes.count()} processes"
        done = len(pictures) - sum(map(len, todo))
        task = bar.add_task(f"extracting{others}", total=done + sum(map(len, mine)), completed=done)
        for shard in mine:
            rows: list[NDArray[np.float32]] = []
            positions: list[int] = []
            reasons: dict[int, str] = {}
            while len(positions) + len(reasons) < len(shard):
                batch = next(loaded)
                _describe_batch(model, scales, batch, rows, positions, reasons)
                bar.advance(task, len(batch))
            shards.write_shard(out, shard, [row.astype(dtype) for row in rows], positions, reasons)


def _workers() -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    return min(8, max(processors // processes.on_this_host() - 1, 0))


def _describe_batch(
    model: nn.Module,
    scales: Sequence[float],
    batch: list[tuple[int, NDArray[np.uint8] | str]],
    rows: list[NDArray[np.float32]],
    positions: list[int],
    reasons: dict[int, str],
) -> None:
    """Put the descriptors of a batch into ``rows`` and ``positions``, and what has none into ``reasons``."""
    reasons.update({position: content for position, content in batch if isinstance(content, str)})
    readable = [(position, content) for position, content in batch if not isinstance(content, str)]
    if not readable:
        return
    device = next(model.parameters(), torch.empty(0)).device
    pictures = [torch.from_numpy(pixels).to(device).float().div_(255) for _, pixels in readable]
    for (position, _), row in zip(readable, describe(model, pictures, scales).cpu().numpy(), strict=True):
        if np.isfinite(row).all():
            positions.append(position)
            rows.append(row)
        else:
            reasons[position] = "the model's descriptor holds NaN or infinity"


def _digest(images: ImageList, boxes: Sequence[Box | None] | None) -> str:
    """Changes with the list, the boxes, and any file's size or time of change."""
    digest = hashlib.sha256()
    for position, name in enumerate(images.names):
        try:
            about = os.stat(Path(images.root, name))
            state: tuple[int, ...] = (about.st_size, about.st_mtime_ns)
        except (OSError, ValueError):
            state = ()
        box = boxes[position] if boxes is not None else None
        digest.update(json.dumps([name, state, [float(side) for side in box] if box is not None else None]).encode())
    return digest.hexdigest()[:16]


def _show_failures(console: Console, failures: Sequence[tuple[str, str]]) -> None:
    if failures:
        subject = "1 image has" if len(failures) == 1 else f"{len(failures)} images have"
        console.print(f"{subject} no descriptor:", style="yellow")
    for name, reason in failures:
        console.print(f"  {printable(name)}: {reason}", markup=False, highlight=False, soft_wrap=True)

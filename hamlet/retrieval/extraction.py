"""Descriptors of many images: decoded by workers, written in shards, resumed where a killed run left off.

The folder of an extraction holds a manifest, which ties it to one model, one list of images and one set of settings,
and

- while it runs, ``shards/``: one file each for a run of images, written beside and renamed, so each is whole or not
  there;
- when it is done, ``descriptors.npy``, float32 (n, dim), and the ids and failures in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hamlet import models
from hamlet.files import printable, remove_parts, replacing
from hamlet.images import ImageList, UnreadableImage, load_image
from hamlet.retrieval.cost import evaluating

FORMAT = "hamlet-extraction"
VERSION = 2
SCALES = (0.7071, 1.0, 1.4142)
"""What multi-scale descriptors are made of, unless other scales are given."""

Box = Sequence[float]


@dataclass(frozen=True)
class Extraction:
    """What an extraction gives.

    Args:
        descriptors: float32 (n, dim), L2-normalised, memory-mapped; row i belongs to ``ids[i]``.
        ids: names of the images, in the order of the list, without those that failed.
        failures: (name, reason) of the images that have no descriptor.
    """

    descriptors: NDArray[np.float32]
    ids: list[str]
    failures: list[tuple[str, str]]


def extract(
    model: nn.Module,
    images: ImageList,
    out: Path | str,
    *,
    boxes: Sequence[Box | None] | None = None,
    longest_side: int = 1024,
    scales: Sequence[float] = (1.0,),
    batch_size: int = 8,
    shard_size: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Extraction:
    """Compute the descriptors of a list of images.

    Killed at any moment and called again with the same arguments it goes on, re-doing at most one shard; called again
    when done it reads the result. Images that cannot be read, and those whose descriptor is not finite, are reported
    and passed over.

    Args:
        model: takes a list of float images (3, h, w) in [0, 1] and returns (B, dim); it runs on the device that it is
            on.
        images: see :func:`hamlet.images.list_images`.
        out: folder of the extraction.
        boxes: for each image (left, top, right, bottom) to cut out first, or None.
        longest_side: see :func:`hamlet.images.load_image`.
        scales: see :func:`describe`.
        batch_size: images a call of the model.
        shard_size: images a shard; a run that resumes keeps the size that it began with.
        workers: processes that decode; default one for each processor beyond the first, at most 8, and none for fewer
            images than two batches.
        progress: show a bar, and the failures at the end, on stderr.

    Raises:
        ValueError: settings out of range; ``out`` holds the extraction of another model, other images or other
            settings, or something else altogether.
    """
    for name, value in {"longest_side": longest_side, "batch_size": batch_size, "shard_size": shard_size}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    check_scales(scales)
    if workers is not None and workers < 0:
        raise ValueError(f"workers: got {workers}, expected at least 0")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"boxes: got {len(boxes)}, expected one for each of the {len(images)} images")
    out = Path(out)
    console = Console(stderr=True, quiet=not progress)
    # Any module with a name, a config and weights has a fingerprint.
    identity = models.fingerprint(model)  # type: ignore[arg-type]
    settings = {
        "model": identity,
        "images": _digest(images, boxes),
        "longest_side": longest_side,
        "scales": [float(scale) for scale in scales],
    }
    manifest = _open_manifest(out, settings, shard_size)
    if "ids" not in manifest:
        pictures = _Pictures(images, boxes, longest_side)
        _run(model, scales, pictures, out, manifest["shard_size"], batch_size, workers, console)
        manifest = _assemble(out, manifest, images)
    shutil.rmtree(out / "shards", ignore_errors=True)
    result = _read(out, manifest)
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


def _run(
    model: nn.Module,
    scales: Sequence[float],
    pictures: _Pictures,
    out: Path,
    shard_size: int,
    batch_size: int,
    workers: int | None,
    console: Console,
) -> None:
    """Write every shard that is not there yet."""
    count = len(pictures)
    starts = [start for start in range(0, count, shard_size) if not _shard(out, start).exists()]
    todo = [range(start, min(start + shard_size, count)) for start in starts]
    batches = [list(shard[i : i + batch_size]) for shard in todo for i in range(0, len(shard), batch_size)]
    if workers is None:
        workers = min(8, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else 1
        workers = 0 if len(batches) < 2 else workers
    # The workers are forked before the bar's thread starts.
    loaded = iter(DataLoader(pictures, batch_sampler=batches, num_workers=workers, collate_fn=list))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar, evaluating(model):
        task = bar.add_task("extracting", total=count, completed=count - sum(map(len, todo)))
        for shard in todo:
            rows: list[NDArray[np.float32]] = []
            positions: list[int] = []
            reasons: dict[int, str] = {}
            while len(positions) + len(reasons) < len(shard):
                batch = next(loaded)
                _describe_batch(model, scales, batch, rows, positions, reasons)
                bar.advance(task, len(batch))
            _write_shard(_shard(out, shard.start), rows, positions, reasons)


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


def _shard(out: Path, start: int) -> Path:
    return out / "shards" / f"{start:010d}.npz"


def _write_shard(
    path: Path, rows: Sequence[NDArray[np.float32]], positions: Sequence[int], reasons: dict[int, str]
) -> None:
    with replacing(path) as file:
        np.savez(
            file,
            descriptors=np.stack(rows) if rows else np.zeros((0, 0), np.float32),
            positions=np.array(positions, dtype=np.int64),
            failed=np.array(list(reasons), dtype=np.int64),
            reasons=np.array(list(reasons.values()), dtype=np.str_),
        )


def _assemble(out: Path, manifest: dict[str, Any], images: ImageList) -> dict[str, Any]:
    """Put the shards together. The manifest comes last, so a kill before it only repeats this step."""
    kept: list[int] = []
    failures = [list(pair) for pair in images.skipped]
    dim = 0
    shards = [_shard(out, start) for start in range(0, len(images), manifest["shard_size"])]
    for path in shards:
        with np.load(path) as shard:
            kept.extend(shard["positions"].tolist())
            dim = max(dim, shard["descriptors"].shape[1])
            failures.extend(
                [images.names[position], str(reason)]
                for position, reason in zip(shard["failed"], shard["reasons"], strict=True)
            )
    with replacing(out / "descriptors.npy") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(kept), dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for path in shards:
            with np.load(path) as shard:
                file.write(shard["descriptors"].astype("<f4").tobytes())
    manifest = {**manifest, "ids": [images.names[position] for position in kept], "failures": failures}
    _write_json(out / "manifest.json", manifest)
    return manifest


def _read(out: Path, manifest: dict[str, Any]) -> Extraction:
    ids = manifest["ids"]
    try:
        descriptors = np.load(out / "descriptors.npy", mmap_mode="r" if ids else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{out}: descriptors.npy is missing or damaged ({error}); remove the folder") from error
    if descriptors.ndim != 2 or len(descriptors) != len(ids):
        raise ValueError(f"{out}: descriptors.npy has shape {descriptors.shape} for {len(ids)} ids; remove the folder")
    return Extraction(descriptors, ids, [(name, reason) for name, reason in manifest["failures"]])


def _open_manifest(out: Path, settings: dict[str, Any], shard_size: int) -> dict[str, Any]:
    """Read the manifest of a run to go on with, after checking that it is of this run, or begin one."""
    path = out / "manifest.json"
    if out.is_dir():
        remove_parts(out)
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out}: holds no extraction, expected an empty or new folder")
        manifest = {"format": FORMAT, "version": VERSION, **settings, "shard_size": shard_size}
        _write_json(path, manifest)
        return manifest
    try:
        found = json.loads(path.read_text())
        known = found["format"] == FORMAT and found["version"] == VERSION
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path}: not the manifest of an extraction of this version, expected another folder")
    for name, value in settings.items():
        if found.get(name) != value:
            what = f"{name} {found.get(name)}, not {value}"
            if name == "images":
                what = "other images, or of images that have changed since"
            raise ValueError(f"{out}: holds an extraction of {what}; name another folder or remove it")
    manifest = dict(found)
    return manifest


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


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
        console.print(f"{len(failures)} images have no descriptor:", style="yellow")
    for name, reason in failures:
        console.print(f"  {printable(name)}: {reason}", markup=False, highlight=False, soft_wrap=True)

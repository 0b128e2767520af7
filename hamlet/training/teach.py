"""A teacher's cache, made once: embedded picture by picture, in shards, resumed where a killed run left off.

The folder of a cache holds manifest.json, which ties it to one teacher, one set of pictures and texts; shards/, a
safetensors file for each run of pictures, float16, written beside and renamed, so each is whole or not there; and, when
it is done, texts.safetensors with the prototypes, and the ids and failures in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hamlet import processes
from hamlet.files import digest_files, remove_parts, replacing, write_json
from hamlet.images import ImageList, UnreadableImage, list_images, load_image
from hamlet.training.clip import ImageTextModel, load_clip
from hamlet.training.teacher import FOLDER_VERSION, FORMAT, TeacherCache, load_folder

BATCH = 32
SIDE = 512
"""Pictures are shrunk to this longest side before the teacher's own preprocessing, which wants less."""
Prototypes = Literal["classes", "captions", "none"]


def teach(
    folder: str | Path,
    pictures: str | Path | ImageList,
    out: str | Path,
    *,
    captions: dict[str, str] | None = None,
    prototypes: Prototypes = "classes",
    template: str = "a photo of a {}",
    shard_size: int = 1024,
    load: Callable[[str | Path], ImageTextModel] = load_clip,
    progress: bool = True,
) -> tuple[TeacherCache, list[tuple[str, str]]]:
    """Make the cache of what a teacher says of pictures and of the texts that belong to them.

    Killed at any moment and called again with the same arguments it goes on, re-doing at most one shard; called again
    when done it reads the result, and the teacher is not even loaded.

    Args:
        folder: of the CLIP model, in transformers' or open_clip's format.
        pictures: a folder or a list, see :func:`hamlet.images.list_images`; or what such a list holds, as
            :func:`hamlet.retrieval.datasets.load_landmark_training` finds.
        out: folder of the cache, which :meth:`TeacherCache.load` reads.
        captions: picture -> caption; see :func:`hamlet.training.read_captions`.
        prototypes: "classes": the name of each picture's folder, put into ``template``; "captions": the mean direction
            of the captions in each folder; "none".
        template: with {} for the name, in which dashes and underscores become spaces.
        shard_size: pictures a shard; a run that resumes keeps the size that it began with.
        load: makes the teacher of its folder.
        progress: show a bar on stderr.

    Returns:
        The cache, and (name, reason) of the pictures that have no row.

    Raises:
        ValueError: arguments out of range, captions of none of the pictures, several processes, or a folder that holds
            the cache of something else.
    """
    _check(captions, prototypes, template, shard_size)
    images, out = pictures if isinstance(pictures, ImageList) else list_images(pictures), Path(out)
    if captions is not None and captions.keys().isdisjoint(images.names):
        raise ValueError(
            f"captions: none of {len(captions)} is of a picture of {images.root}, whose names are as {images.names[0]}"
        )
    settings = {
        "teacher": _digest_teacher(Path(folder)),
        "pictures": digest_files(images.root, images.names),
        "captions": _digest(sorted((captions or {}).items())),
        "prototypes": [prototypes, template if prototypes == "classes" else ""],
    }
    manifest = _open(out, settings, shard_size)
    if "ids" not in manifest:
        model = load(folder)
        starts = [s for s in range(0, len(images), manifest["shard_size"]) if not _shard(out, s).exists()]
        shown = track(starts, "asking the teacher", console=Console(stderr=True), disable=not progress)
        for start in shown:
            _write_shard(model, images, range(start, min(start + manifest["shard_size"], len(images))), captions, out)
        manifest = _finish(model, images, out, manifest, captions, prototypes, template)
    return load_folder(out), [(name, reason) for name, reason in manifest["failures"]]


def _check(captions: dict[str, str] | None, prototypes: Prototypes, template: str, shard_size: int) -> None:
    if processes.count() > 1:
        raise ValueError(f"processes: got {processes.count()}, expected one, as a teacher's work is not shared")
    if shard_size < 1:
        raise ValueError(f"shard_size: got {shard_size}, expected 1 or more")
    if prototypes not in ("classes", "captions", "none"):
        raise ValueError(f"prototypes: got {prototypes!r}, expected classes, captions or none")
    if prototypes == "captions" and not captions:
        raise ValueError("prototypes: got captions, but there is no file of captions")
    if template.count("{}") != 1:
        raise ValueError(f"template: got {template!r}, expected a text with one {{}} for the class's name")


def _write_shard(
    model: ImageTextModel, images: ImageList, places: range, captions: dict[str, str] | None, out: Path
) -> None:
    kept: list[int] = []
    rows: list[Tensor] = []
    failed: dict[str, str] = {}
    with ThreadPoolExecutor() as threads:
        batches = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
        for found in _read_ahead(images, batches, threads):
            failed |= {str(place): why for place, why in found.items() if isinstance(why, str)}
            pixels = {place: picture for place, picture in found.items() if isinstance(picture, Tensor)}
            for place, row in zip(pixels, model.images(list(pixels.values())) if pixels else (), strict=True):
                if row.isfinite().all():
                    kept.append(place)
                    rows.append(row)
                else:
                    failed[str(place)] = "the teacher's embedding holds NaN or infinity"
    tensors = {"places": torch.tensor(kept, dtype=torch.long)}
    if rows:
        tensors["embeddings"] = F.normalize(torch.stack(rows), dim=1).half()
    if captions and rows:
        tensors["captions"] = _embed_captions(model, [captions.get(images.names[place]) for place in kept], tensors)
    with replacing(_shard(out, places.start)) as file:
        file.write(save(tensors, metadata={"failed": json.dumps(failed)}))


def _read_ahead(
    images: ImageList, batches: Sequence[range], threads: ThreadPoolExecutor
) -> Iterator[dict[int, Tensor | str]]:
    """The pictures of each batch by their places; while the teacher looks at one, the next is read."""

    def begin(batch: range) -> Iterator[Tensor | str]:
        return threads.map(lambda place: _read(images, place), batch)

    ahead = begin(batches[0])
    for batch, following in zip_longest(batches, batches[1:], fillvalue=range(0)):
        now, ahead = ahead, begin(following)
        yield dict(zip(batch, now, strict=True))


def _embed_captions(model: ImageTextModel, texts: Sequence[str | None], tensors: dict[str, Tensor]) -> Tensor:
    """A row for each text, zeros where there is none."""
    rows = torch.zeros_like(tensors["embeddings"])
    there = [row for row, text in enumerate(texts) if text is not None]
    for start in range(0, len(there), BATCH):
        some = there[start : start + BATCH]
        rows[some] = F.normalize(model.texts([str(texts[row]) for row in some]), dim=1).half()
    _check_finite(rows)
    return rows


def _check_finite(texts: Tensor) -> None:
    if not texts.isfinite().all():
        raise ValueError("teacher: its embedding of a text holds NaN or infinity, expected finite numbers")


def _finish(
    model: ImageTextModel,
    images: ImageList,
    out: Path,
    manifest: dict[str, Any],
    captions: dict[str, str] | None,
    prototypes: Prototypes,
    template: str,
) -> dict[str, Any]:
    """The texts, and then the manifest, which says that all is there: a kill before it only repeats this."""
    names: list[str] = []
    failures = [list(pair) for pair in images.skipped]
    described: dict[str, list[Tensor]] = {}
    shards = [_shard(out, start) for start in range(0, len(images), manifest["shard_size"])]
    for path in shards:
        try:
            tensors, failed = load_file(path), _failed(path)
        except SafetensorError as error:
            raise ValueError(f"out: {path} is damaged ({error}); remove it, and it is made again") from error
        kept = [images.names[place] for place in tensors["places"].tolist()]
        failures += [[images.names[int(place)], why] for place, why in failed.items()]
        names += kept
        for name, row in zip(kept, tensors.get("captions", ()), strict=False):
            if row.any():
                described.setdefault(_class(name), []).append(row.float())
    if not names:
        raise ValueError(
            f"{images.root}: none of the pictures can be read, such as {failures[0][0]} ({failures[0][1]})"
        )
    if prototypes == "classes":
        texts = [template.format(name.replace("_", " ").replace("-", " ")) for name in sorted(set(map(_class, names)))]
        rows = torch.cat([model.texts(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])
    elif prototypes == "captions":
        if not described:
            raise ValueError(f"captions: none is of a picture of {images.root} that can be read")
        rows = torch.stack([torch.stack(described[name]).mean(0) for name in sorted(described)])
    if prototypes != "none":
        _check_finite(rows)
        with replacing(out / "texts.safetensors") as file:
            file.write(save({"prototypes": F.normalize(rows, dim=1)}))
    manifest |= {
        "ids": names,
        "failures": failures,
        "shards": [path.name for path in shards],
        "logit_scale": model.logit_scale,
        "name": model.name,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _open(out: Path, settings: dict[str, Any], shard_size: int) -> dict[str, Any]:
    path = out / "manifest.json"
    if out.is_dir():
        for folder in (out, out / "shards"):
            remove_parts(folder)
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out: {out} holds no teacher's cache, expected an empty or new folder")
        manifest = {"format": FORMAT, "version": FOLDER_VERSION, **settings, "shard_size": shard_size}
        write_json(path, manifest)
        return manifest
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        known = found["format"] == FORMAT and found["version"] == FOLDER_VERSION
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"out: {path} is not the manifest of a teacher's cache of this version; give another folder")
    if other := [name for name, value in settings.items() if found.get(name) != value]:
        raise ValueError(f"out: {out} holds a cache of other {' and '.join(other)}; give another folder or remove it")
    return found


def _read(images: ImageList, place: int) -> Tensor | str:
    try:
        return load_image(images.path(images.names[place]), SIDE)
    except UnreadableImage as unreadable:
        return str(unreadable)
    except ValueError:
        return "the path leaves the folder"


def _class(name: str) -> str:
    """A picture's class for the prototypes: the name of its folder."""
    return PurePosixPath(name).parent.name or "picture"


def _shard(out: Path, start: int) -> Path:
    return out / "shards" / f"{start:010d}.safetensors"


def _failed(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        failed: dict[str, str] = json.loads((file.metadata() or {}).get("failed", "{}"))
    return failed


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digest_teacher(folder: Path) -> str:
    """Of the content of the teacher's files, wherever they lie."""
    if not folder.is_dir():
        raise ValueError(f"teacher: {folder} is not a folder")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".safetensors", ".json", ".txt"}:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]

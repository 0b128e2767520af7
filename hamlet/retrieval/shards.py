"""The folder of an extraction.

It holds a manifest, which ties it to one model, one list of images and one set of settings, and

- while it runs, ``shards/``: one file each for a run of images, written beside and renamed, so each is whole or not
  there; and ``lock``, held by the run that is at work;
- when it is done, ``descriptors.npy``, float16 or float32 (n, dim), and the ids and failures in the manifest.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamlet.files import remove_parts, replacing
from hamlet.images import ImageList

FORMAT = "hamlet-extraction"
VERSION = 3
DTYPES = ("float32", "float16")
PATIENCE = 60.0
"""Seconds for which a file that another host has written may not be seen."""


@dataclass(frozen=True)
class Extraction:
    """What an extraction gives.

    Args:
        descriptors: float16 or float32 (n, dim), L2-normalised, memory-mapped; row i belongs to ``ids[i]``.
        ids: names of the images, in the order of the list, without those that failed.
        failures: (name, reason) of the images that have no descriptor.
    """

    descriptors: NDArray[Any]
    ids: list[str]
    failures: list[tuple[str, str]]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however that ends; ValueError if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    while True:
        with open(path, "ab") as file:
            try:
                # Of the process alone: workers that it forked, and that outlive it for seconds, do not hold this kind.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(
                    f"{folder}: another process is at work in it; wait for its end, or name another folder"
                ) from None
            # A run that ended between the two lines above took the file away: its lock keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


def read_manifest(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of the extraction with these settings; None where none has begun.

    Raises:
        ValueError: the folder holds another extraction, or something else altogether.
    """
    path = folder / "manifest.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or not all(map(_is_ours, folder.iterdir()))):
            raise ValueError(f"{folder}: holds no extraction, expected an empty or new folder")
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
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
            raise ValueError(f"{folder}: holds an extraction of {what}; name another folder or remove it")
    return found


def begin(folder: Path, settings: Mapping[str, Any], count: int, shard_size: int) -> list[range]:
    """Write the manifest where there is none; images, by number, of each shard that is not there yet, or damaged."""
    remove_parts(folder)
    remove_parts(folder / "shards")
    manifest = read_manifest(folder, settings)
    if manifest is None:
        manifest = {"format": FORMAT, "version": VERSION, **settings, "shard_size": shard_size}
        _write_manifest(folder, manifest)
    return [shard for shard in _shards(count, manifest) if not _is_whole(_path(folder, shard))]


def write_shard(
    folder: Path,
    shard: range,
    rows: Sequence[NDArray[Any]],
    positions: Sequence[int],
    reasons: Mapping[int, str],
) -> None:
    """Keep the descriptors of the images at ``positions``, and the reasons why others have none."""
    with replacing(_path(folder, shard)) as file:
        np.savez(
            file,
            descriptors=np.stack(rows) if rows else np.zeros((0, 0), np.float32),
            positions=np.array(positions, dtype=np.int64),
            failed=np.array(list(reasons), dtype=np.int64),
            reasons=np.array(list(reasons.values()), dtype=np.str_),
        )


def assemble(folder: Path, settings: Mapping[str, Any], images: ImageList) -> None:
    """Put the shards together, one at a time in memory.

    The manifest comes last, so a kill before it only repeats this step.

    Raises:
        ValueError: a shard that is not there.
    """
    manifest = read_manifest(folder, settings)
    if manifest is None:
        raise ValueError(f"{folder}: manifest.json is gone, expected what the extraction began with")
    paths = [_path(folder, shard) for shard in _shards(len(images), manifest)]
    if missing := wait_for(paths):
        raise ValueError(f"{missing[0]}: no such file; expected a folder that all processes write to")
    kept: list[int] = []
    failures = [list(pair) for pair in images.skipped]
    dim = 0
    for path in paths:
        with np.load(path) as shard:
            kept.extend(shard["positions"].tolist())
            dim = max(dim, shard["descriptors"].shape[1])
            failures.extend(
                [images.names[position], str(reason)]
                for position, reason in zip(shard["failed"], shard["reasons"], strict=True)
            )
    kind = np.dtype(manifest["dtype"]).newbyteorder("<")
    with replacing(folder / "descriptors.npy") as file:
        header = {"descr": kind.str, "fortran_order": False, "shape": (len(kept), dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for path in paths:
            with np.load(path) as shard:
                file.write(shard["descriptors"].astype(kind).tobytes())
    _write_manifest(folder, {**manifest, "ids": [images.names[position] for position in kept], "failures": failures})


def wait_for(paths: Sequence[Path]) -> list[Path]:
    """Those that are not there, once all are or :data:`PATIENCE` is over.

    What another host has written to a folder of the network may be seen here only when its cache of names has aged.
    """
    end = time.monotonic() + PATIENCE
    while (missing := [path for path in paths if not path.exists()]) and time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
    return missing


def is_done(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds the result; what a kill at the very end left beside it is then removed."""
    if read(folder, settings) is None:
        return False
    if (folder / "shards").exists() or (folder / "lock").exists():
        with alone_in(folder):
            clean(folder)
    return True


def clean(folder: Path) -> None:
    """Remove what a finished extraction needs no longer."""
    shutil.rmtree(folder / "shards", ignore_errors=True)
    (folder / "lock").unlink(missing_ok=True)


def read(folder: Path, settings: Mapping[str, Any]) -> Extraction | None:
    """The result of an extraction with these settings; None where it is not done.

    Raises:
        ValueError: as :func:`read_manifest`, and for descriptors that are missing or damaged.
    """
    manifest = read_manifest(folder, settings)
    if manifest is None or "ids" not in manifest:
        return None
    ids = manifest["ids"]
    try:
        descriptors = np.load(folder / "descriptors.npy", mmap_mode="r" if ids else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: descriptors.npy is missing or damaged ({error}); remove the folder") from error
    if descriptors.ndim != 2 or len(descriptors) != len(ids):
        raise ValueError(
            f"{folder}: descriptors.npy has shape {descriptors.shape} for {len(ids)} ids; remove the folder"
        )
    return Extraction(descriptors, ids, [(name, reason) for name, reason in manifest["failures"]])


def _shards(count: int, manifest: Mapping[str, Any]) -> list[range]:
    size = manifest["shard_size"]
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _path(folder: Path, shard: range) -> Path:
    return folder / "shards" / f"{shard.start:010d}.npz"


def _is_whole(path: Path) -> bool:
    """Whether a shard is there, and its checksums hold: a disk or a power cut may have damaged what was renamed."""
    try:
        with zipfile.ZipFile(path) as shard:
            return shard.testzip() is None
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _is_ours(path: Path) -> bool:
    """What a run that was killed before it had a manifest may have left."""
    return path.name == "lock" or (path.name.startswith(".") and path.suffix == ".part")


def _write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    with replacing(folder / "manifest.json") as file:
        file.write(json.dumps(content, indent=1).encode())

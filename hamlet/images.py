"""Finding pictures, and reading them whatever state they are in."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# What photographs are kept in. Pillow may lack a decoder: such a file is listed all the same, then found unreadable.
EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe"}
    | {".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Pillow's own threshold for a decompression bomb: a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485


class UnreadableImage(ValueError):
    """A file that gives no picture; the message is one line that says why."""


@dataclass(frozen=True)
class ImageList:
    """Pictures by name below one folder.

    Args:
        root: the folder.
        names: paths relative to it with forward slashes; they are the pictures' ids.
        skipped: (name, reason) of what was found and left out, such as links that leave the folder.
    """

    root: Path
    names: Sequence[str]
    skipped: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """Where ``name`` lies; ValueError if that is not below the root."""
        return inside(self.root, name)


def inside(root: Path | str, name: str) -> Path:
    """Join a name that came from a file to a folder, refusing to leave the folder.

    >>> inside("/photos", "../etc/passwd")
    Traceback (most recent call last):
    ...
    ValueError: '../etc/passwd': got a path with '..', expected one below /photos
    """
    relative(name, root)
    path = Path(root, name)
    if not _is_below(path, root):
        raise ValueError(f"{name!r}: got a link that leaves the folder, expected one below {root}")
    return path


def _is_below(path: Path, root: Path | str) -> bool:
    # Path.resolve would fail at links that go round in a circle.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def relative(name: str, root: Path | str) -> str:
    """The name itself, if it can lie below a folder as far as its letters tell; links are :func:`inside`'s to follow.

    >>> relative("/etc/passwd", "/photos")
    Traceback (most recent call last):
    ...
    ValueError: '/etc/passwd': got an absolute path, expected one below /photos
    """
    reason = None
    if not name or "\0" in name:
        reason = "an empty path or one with a null character"
    elif PurePosixPath(name).is_absolute() or Path(name).is_absolute():
        reason = "an absolute path"
    elif ".." in PurePosixPath(name).parts or ".." in Path(name).parts:
        reason = "a path with '..'"
    if reason is not None:
        raise ValueError(f"{name!r}: got {reason}, expected one below {root}")
    return name


def list_images(source: Path | str, root: Path | str | None = None) -> ImageList:
    """List the pictures of a folder, or those that a text file names.

    Args:
        source: a folder, searched recursively for files with one of the usual extensions, sorted by name; or a text
            file with one path a line, relative to ``root``, in its own order (empty lines are passed over).
        root: folder that the paths of a list are relative to; default the folder of the list.

    Raises:
        ValueError: no such file or folder; nothing found; a list with a path that is absolute, has '..', leaves the
            root through a link, or comes twice. In a folder, links that leave it are put in ``skipped`` with the
            reason.
    """
    source = Path(source)
    if source.is_dir():
        if root is not None:
            raise ValueError(f"root: got {root}, expected None with a folder")
        images = _list_folder(source)
    elif source.is_file():
        images = _read_list(source, Path(root) if root is not None else source.parent)
    else:
        raise ValueError(f"{source}: no such file or folder, expected a folder of images or a list of their paths")
    if not images.names:
        raise ValueError(f"{source}: no image found, expected files with one of {', '.join(sorted(EXTENSIONS))}")
    return images


def _list_folder(root: Path) -> ImageList:
    names: list[str] = []
    skipped: list[tuple[str, str]] = []

    def skip(error: OSError) -> None:
        skipped.append((Path(error.filename).relative_to(root).as_posix(), _one_line(error)))

    for folder, folders, files in os.walk(root, onerror=skip):
        for entry in folders:
            path = Path(folder, entry)
            if path.is_symlink():
                skipped.append((path.relative_to(root).as_posix(), "a linked folder is not followed"))
            elif path.suffix.lower() in EXTENSIONS:
                skipped.append((path.relative_to(root).as_posix(), "a folder, in spite of its name"))
        for entry in files:
            path = Path(folder, entry)
            if path.suffix.lower() not in EXTENSIONS:
                continue
            name = path.relative_to(root).as_posix()
            if path.is_symlink() and not _is_below(path, root):
                skipped.append((name, "a link that leaves the folder"))
            else:
                names.append(name)
    return ImageList(root, sorted(names), sorted(skipped))


def _read_list(source: Path, root: Path) -> ImageList:
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 text, expected one path a line") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = PurePosixPath(line.strip()).as_posix()
        try:
            inside(root, name)
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
        if name in names:
            raise ValueError(f"{source}, line {number}: {name!r} comes twice, first on line {names[name]}")
        names[name] = number
    return ImageList(root, list(names))


def load_image(
    path: Path | str,
    longest_side: int = 1024,
    *,
    box: Sequence[float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read a picture as 8-bit RGB, turned upright as its EXIF says, shrunk to a longest side and never enlarged.

    Transparency is laid over white, 16-bit samples are scaled to 8 bits, an animation gives its first frame, and
    colours are converted without regard to embedded profiles.

    Args:
        path: the file.
        longest_side: largest height and width of the result, in pixels.
        box: (left, top, right, bottom) in pixels of the file, cut out first, each rounded as ``PIL.Image.crop`` does.
        max_pixels: files that declare more pixels than this are refused before they are decoded.

    Returns:
        uint8 tensor (3, H, W).

    Raises:
        UnreadableImage: a file that is missing, empty, corrupt, truncated, not a picture, or too large.
    """
    if longest_side < 1:
        raise ValueError(f"longest_side: got {longest_side}, expected at least 1")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableImage("not a regular file")
        if os.path.getsize(path) == 0:
            raise UnreadableImage("the file is empty")
    except OSError as error:
        raise UnreadableImage(_one_line(error)) from error
    return decode_image(path, longest_side, box=box, max_pixels=max_pixels)


def decode_image(
    source: Path | str | BinaryIO,
    longest_side: int = 1024,
    *,
    box: Sequence[float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """:func:`load_image` of what an open file holds, such as a part of an archive."""
    try:
        # The bound on pixels is checked here; what else Pillow warns of is the file's business.
        with _silence, Image.open(source) as file:
            picture = _decode(file, longest_side, box, max_pixels)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image of a known format") from error
    except Exception as error:  # A decoder fed a broken file may raise anything: OSError, SyntaxError, struct.error...
        raise UnreadableImage(_one_line(error)) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


class _Silence:
    """No warnings while any thread is within.

    The filters are the whole process's: threads that each caught warnings would put back what another had set, and the
    last of them would leave everything silenced.
    """

    def __init__(self) -> None:
        self._caught = warnings.catch_warnings()
        self.forget()

    def forget(self) -> None:
        """In a forked process: the threads that were within are not there, nor is the one that had the lock."""
        self._lock, self._within = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._within += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._caught.__exit__(None, None, None)


_silence = _Silence()
os.register_at_fork(after_in_child=_silence.forget)


def _decode(file: Image.Image, longest_side: int, box: Sequence[float] | None, max_pixels: int) -> Image.Image:
    _check_size(file.width, file.height, max_pixels)
    if box is None:
        # A JPEG decodes at a fraction of its size; twice the wanted side leaves the resampling filter enough to work
        # on.
        file.draft(None, (2 * longest_side, 2 * longest_side))
        picture = file
    else:
        left, top, right, bottom = (round(side) for side in box)
        _check_size(right - left, bottom - top, max_pixels)
        picture = file.crop((left, top, right, bottom))
    picture.load()
    with contextlib.suppress(Exception):  # A broken EXIF block must not cost the picture.
        picture = ImageOps.exif_transpose(picture)
    picture = _to_rgb(picture)
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return picture


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise UnreadableImage(f"{width} x {height} pixels, expected at least 1 x 1")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, expected at most {max_pixels} in all")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _scale_samples(picture).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _scale_samples(picture: Image.Image) -> Image.Image:
    """8-bit grey from wide samples: integers are taken as 16-bit, floats as 0 to 1, or to 255 if any is above 1."""
    samples = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=0.0)
        scale = 255.0 if samples.max() <= 1 else 1.0
    else:
        scale = 255.0 / 65535.0
    return Image.fromarray(np.clip(np.rint(samples * scale), 0, 255).astype(np.uint8))


def _one_line(error: Exception) -> str:
    # The operating system's own words, without the path that the caller knows.
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__

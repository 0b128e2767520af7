"""A training set from a folder of pictures: subfolders are classes, nested ones a hierarchy of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from hamlet.training.recipe import AugmentRecipe

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 89_478_485
"""Pillow's own bound against decompression bombs."""


class TrainingSet(Protocol):
    """What :func:`hamlet.training.train` trains on.

    It may also have ``ids``, the samples' names, by which a teacher's embeddings are found, and ``hierarchy``, for each
    coarser level of the labels the label of every sample.
    """

    @property
    def labels(self) -> Sequence[int]:
        """The class of each sample, 0 to classes - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        """The view (3, H, W), floating point in [0, 1], of sample ``key[0]`` that the seed ``key[1]`` decides alone."""


class FolderDataset:
    """Pictures below a folder, whose subfolders are the classes.

    Where all pictures lie in nested subfolders, as ``animals/cats/1.jpg``, the class is the folder at the smallest
    depth that all of them reach, and the folders above it are the coarser labels, nearest first.

    Pictures that cannot be read are found when the set is made and left out.

    Args:
        root: the folder.
        augment: random changes of a view.
        image_size: height and width of a view, in pixels.
        progress: show a bar on stderr while the pictures are checked.

    Attributes:
        ids: paths below the root, with forward slashes.
        labels, classes: the class of each picture, and the classes' names.
        hierarchy: for each coarser level, the label of each picture.
        skipped: (path, reason) of what was left out.

    Raises:
        ValueError: no such folder, or fewer than two classes with pictures.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cats/1.png", "dogs/1.png"):
        ...         Path(folder, name).parent.mkdir()
        ...         Image.new("RGB", (40, 30)).save(Path(folder, name))
        ...     dataset = FolderDataset(folder, AugmentRecipe(), image_size=16)
        ...     dataset.classes, tuple(dataset[0, 123].shape)
        (['cats', 'dogs'], (3, 16, 16))

    Source: HAMLET architecture, §4.
    """

    def __init__(self, root: str | Path, augment: AugmentRecipe, image_size: int, *, progress: bool = False) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"data.root: {root} is not a folder")
        self.ids, self.skipped = _scan(self.root, progress)
        folders = [PurePosixPath(name).parts[:-1] for name in self.ids]
        depth = min(map(len, folders), default=0)
        names = [["/".join(parts[:length]) for parts in folders] for length in range(depth, 0, -1)]
        self.classes = sorted(set(names[0])) if names else []
        if len(self.classes) < 2:
            left_out = f"; left out: {self.skipped[0][0]} ({self.skipped[0][1]}), ..." if self.skipped else ""
            raise ValueError(
                f"data.root: {root} has {len(self.classes)} subfolders with pictures, expected at least two, "
                f"one for each class{left_out}"
            )
        self.labels, *self.hierarchy = [_numbered(level) for level in names]
        self.transform = augmentation(augment, image_size)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        index, seed = key
        try:
            # Twice the view's size leaves enough for a crop of a quarter of the area.
            image = read_image(self.root / self.ids[index], 2 * self.image_size)
        except ValueError as error:
            raise ValueError(f"{self.ids[index]}: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            view: Tensor = self.transform(image)
        return view


def augmentation(recipe: AugmentRecipe, image_size: int) -> v2.Compose:
    """The random changes of a recipe: uint8 (3, h, w) -> float (3, image_size, image_size) in [0, 1].

    All chance comes from torch's default generator.
    """
    color = recipe.color
    steps = [
        v2.RandomPerspective(recipe.perspective, p=1.0) if recipe.perspective else v2.Identity(),
        v2.RandomResizedCrop(image_size, scale=recipe.scale, ratio=recipe.ratio, antialias=True),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.ColorJitter(color, color, color, min(0.5, color / 4)),
        v2.RandomGrayscale(recipe.gray),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.5))], p=recipe.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(recipe.erase, scale=(0.02, 0.2), value=0.5),
    ]
    return v2.Compose(steps)


def read_image(path: str | Path, least_side: int | None = None) -> Tensor:
    """Read a picture as uint8 RGB (3, H, W), turned upright as its EXIF says.

    Args:
        least_side: a JPEG may be decoded at a fraction of its size, as long as both sides stay at least this long.

    Raises:
        ValueError: a file that gives no picture, or one of more than ``MAX_PIXELS`` pixels, with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, expected at most {MAX_PIXELS} in all")
                if least_side is not None:
                    image.draft("RGB", (least_side, least_side))
                upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # A decoder fed a broken file may raise anything.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(" ".join(reason.split()) or type(error).__name__) from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def _scan(root: Path, progress: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the pictures that can be read, and (name, reason) of the others, both sorted."""
    names = sorted(
        Path(folder, file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root)
        for file in files
        if os.path.splitext(file)[1].lower() in EXTENSIONS
    )

    def fault(name: str) -> str | None:
        if "/" not in name:
            return "it lies in no subfolder, so it has no class"
        if not (root / name).resolve().is_relative_to(root.resolve()):
            return "a link that leaves the folder"
        try:
            read_image(root / name, 1)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        faults = threads.map(fault, names)
        shown = track(faults, "checking pictures", len(names), console=Console(stderr=True), disable=not progress)
        found = dict(zip(names, shown, strict=True))
    return [name for name in names if found[name] is None], [(name, why) for name, why in found.items() if why]


def _numbered(names: Sequence[str]) -> list[int]:
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]

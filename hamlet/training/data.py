"""A training set from a folder of pictures: subfolders are classes, nested ones a hierarchy of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from hamlet.images import UnreadableImage, list_images, load_image
from hamlet.training.recipe import AugmentRecipe

DETAIL = 4
"""A picture's longest side in views: enough for a crop of a quarter of the area of a picture twice as long as high."""


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
        >>> from PIL import Image
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
            image = load_image(self.root / self.ids[index], DETAIL * self.image_size)
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


def _scan(root: Path, progress: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the pictures that can be read, and (name, reason) of the others, both sorted."""
    images = list_images(root)

    def fault(name: str) -> str | None:
        if "/" not in name:
            return "it lies in no subfolder, so it has no class"
        try:
            # A JPEG that is to be tiny is decoded fast, and all of the file is read all the same.
            load_image(images.path(name), 1)
        except UnreadableImage as error:
            return str(error)
        return None

    names = images.names
    with ThreadPoolExecutor() as threads:
        faults = threads.map(fault, names)
        shown = track(faults, "checking pictures", len(names), console=Console(stderr=True), disable=not progress)
        found = dict(zip(names, shown, strict=True))
    left_out = [*images.skipped, *((name, why) for name, why in found.items() if why)]
    return [name for name in names if found[name] is None], sorted(left_out)


def _numbered(names: Sequence[str]) -> list[int]:
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]

"""Training sets of pictures, and random views of them; a folder's subfolders are classes, nested ones a hierarchy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from PIL import ExifTags, Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms import v2

from hamlet import processes
from hamlet.images import UnreadableImage, inside, list_images, load_image
from hamlet.training.once import once
from hamlet.training.recipe import AugmentRecipe

DETAIL = 4
"""A picture's longest side in views: enough for a crop of a quarter of the area of a picture twice as long as high."""


class TrainingSet(Protocol):
    """What :func:`hamlet.training.train` trains on.

    It may also have ``ids``, the samples' names, by which a teacher's embeddings are found; ``hierarchy``, for each
    coarser level of the labels the label of every sample; and ``shapes``, a number for each sample, where views of
    different numbers differ in shape.
    """

    @property
    def labels(self) -> Sequence[int]:
        """The class of each sample, 0 to classes - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        """A view (3, H, W), floating point in [0, 1], that (sample, seed, image size) decide alone."""


class Views:
    """Random views of pictures, each a function of its sample, its seed and the image size.

    Args:
        augment: random changes of a view.
        aspects: widths / heights of views.
        shapes: for each sample the place of its aspect among them.
    """

    def __init__(self, augment: AugmentRecipe, aspects: Sequence[float], shapes: Sequence[int]) -> None:
        self.augment, self.aspects, self.shapes = augment, aspects, shapes
        self._made: dict[tuple[int, int], v2.Compose] = {}

    def render(self, picture: Tensor, key: tuple[int, int, int]) -> Tensor:
        """A view (3, H, W) of a picture, uint8 (3, h, w)."""
        sample, seed, image_size = key
        size = view_size(image_size, self.aspects[self.shapes[sample]])
        if size not in self._made:
            self._made[size] = augmentation(self.augment, size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            view: Tensor = self._made[size](picture)
        return view


class PictureSet:
    """Labelled pictures below a folder.

    Args:
        root: the folder.
        ids: their paths below it.
        labels: int (n,), the class of each, 0 to classes - 1.
        hierarchy: for each coarser level of the labels, the label of each picture.
        augment, aspects: see :class:`hamlet.training.recipe.DataRecipe`. With several aspects, the sizes of all
            pictures are looked up when the set is made.

    Raises:
        ValueError: on reading a picture that cannot be read, by its name.
    """

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        labels: Sequence[int],
        hierarchy: Sequence[Sequence[int]],
        augment: AugmentRecipe,
        aspects: Sequence[float] = (1.0,),
    ) -> None:
        self.root, self.ids, self.labels, self.hierarchy = root, ids, labels, hierarchy
        self.skipped: Sequence[tuple[str, str]] = ()
        self.shapes: Sequence[int] = [0] * len(ids)
        if len(aspects) > 1:
            self.shapes = once(lambda: _shapes(root, ids, aspects))
        self.views = Views(augment, aspects, self.shapes)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        name, image_size = self.ids[key[0]], key[2]
        try:
            picture = load_image(inside(self.root, name), DETAIL * image_size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return self.views.render(picture, key)


class FolderDataset(PictureSet):
    """Pictures below a folder, whose subfolders are the classes.

    Where all pictures lie in nested subfolders, as ``animals/cats/1.jpg``, the class is the folder at the smallest
    depth that all of them reach, and the folders above it are the coarser labels, nearest first. A warning tells of
    pictures that lie deeper, and which class they are of.

    Pictures that cannot be read are found when the set is made and left out.

    Args:
        root: the folder.
        augment, aspects: see :class:`PictureSet`.
        without: pictures to leave out, each with the reason.
        progress: show a bar on stderr.

    Attributes:
        ids: the pictures' paths below the root.
        classes: the folder of each class.
        labels: the class of each picture.
        hierarchy: for each coarser level, the label of each picture.
        skipped: (name, reason) of what was left out.

    Raises:
        ValueError: no such folder, or fewer than two classes in it.
    """

    def __init__(
        self,
        root: str | Path,
        augment: AugmentRecipe,
        aspects: Sequence[float] = (1.0,),
        *,
        without: Sequence[tuple[str, str]] = (),
        progress: bool = False,
    ) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"data.root: {root} is not a folder")
        ids, skipped = once(lambda: _scan(root, without, progress))
        names = levels([str(PurePosixPath(name).parent) for name in ids])
        self.classes = sorted(set(names[0])) if names else []
        if len(self.classes) < 2:
            left_out = f"; left out: {skipped[0][0]} ({skipped[0][1]}), ..." if skipped else ""
            raise ValueError(
                f"data.root: {root} has {len(self.classes)} subfolders with pictures, expected at least two, "
                f"one for each class{left_out}"
            )
        labels, *hierarchy = [numbered(level) for level in names]
        super().__init__(root, ids, labels, hierarchy, augment, aspects)
        self.skipped = skipped
        deeper = [name for name in ids if name.count("/") > len(names)]
        if deeper and processes.rank() == 0:
            warnings.warn(
                f"data.root: {len(deeper)} of {len(ids)} pictures lie deeper than others, such as {deeper[0]}; "
                f"they are of class {'/'.join(deeper[0].split('/')[: len(names)])}",
                stacklevel=2,
            )


def view_size(image_size: int, aspect: float) -> tuple[int, int]:
    """Height and width of a view, about as large as a square of ``image_size``.

    Sides of anything but squares are multiples of 32, the stride of the usual backbones.

    Example:
        >>> view_size(224, 1.0), view_size(224, 4 / 3)
        ((224, 224), (192, 256))
    """
    if aspect == 1:
        return image_size, image_size
    height, width = image_size / math.sqrt(aspect), image_size * math.sqrt(aspect)
    return max(32, round(height / 32) * 32), max(32, round(width / 32) * 32)


def nearest(aspects: Sequence[float], path: Path) -> int:
    """The place of the aspect that is nearest, as a ratio, to a picture's own as it stands upright."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    aspect = height / width if turned else width / height
    return min(range(len(aspects)), key=lambda place: abs(math.log(aspects[place] / aspect)))


def augmentation(recipe: AugmentRecipe, size: int | tuple[int, int]) -> v2.Compose:
    """The random changes of a recipe: uint8 (3, h, w) -> float (3, H, W) in [0, 1], ``size`` giving H and W.

    All chance comes from torch's default generator.
    """
    color = recipe.color
    steps = [
        v2.RandomPerspective(recipe.perspective, p=1.0) if recipe.perspective else v2.Identity(),
        v2.RandomResizedCrop(size, scale=recipe.scale, ratio=recipe.ratio, antialias=True),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.ColorJitter(color, color, color, min(0.5, color / 4)),
        v2.RandomGrayscale(recipe.gray),
        v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.5))], p=recipe.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomErasing(recipe.erase, scale=(0.02, 0.2), value=0.5),
    ]
    return v2.Compose(steps)


def faults(names: Sequence[str], read: Callable[[str], object], *, progress: bool = False) -> dict[str, str]:
    """Why pictures cannot be read, of those for which reading raises UnreadableImage."""

    def fault(name: str) -> str | None:
        try:
            read(name)
        except UnreadableImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        found = threads.map(fault, names)
        shown = track(found, "checking pictures", len(names), console=Console(stderr=True), disable=not progress)
        return {name: why for name, why in zip(names, shown, strict=True) if why is not None}


def left_out(names: Sequence[str], without: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Those of the pictures that are to be left out, and why."""
    there = set(names)
    return {name: why for name, why in without if name in there}


def levels(names: Sequence[str]) -> list[list[str]]:
    """The names of classes, as "animals/cats", at the depth that all reach, and of what they are in, nearest first.

    Example:
        >>> levels(["animals/cats/tabby", "things/cups"])
        [['animals/cats', 'things/cups'], ['animals', 'things']]
    """
    parts = [PurePosixPath(name).parts for name in names]
    depth = min(map(len, parts), default=0)
    return [["/".join(each[:length]) for each in parts] for length in range(depth, 0, -1)]


def numbered(names: Sequence[str]) -> list[int]:
    """Names as numbers from 0, in their sorted order; the empty name is -1."""
    numbers = {name: number for number, name in enumerate(sorted(set(names) - {""}))} | {"": -1}
    return [numbers[name] for name in names]


def _scan(root: Path, without: Sequence[tuple[str, str]], progress: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the pictures that can be read, and (name, reason) of the others, both sorted."""
    images = list_images(root)
    out = dict(images.skipped) | left_out(images.names, without)
    out |= {name: "it lies in no subfolder, so it has no class" for name in images.names if "/" not in name}
    todo = [name for name in images.names if name not in out]
    # A JPEG that is to be tiny is decoded fast, and all of the file is read all the same.
    out |= faults(todo, lambda name: load_image(images.path(name), 1), progress=progress)
    return [name for name in todo if name not in out], sorted(out.items())


def _shapes(root: Path, ids: Sequence[str], aspects: Sequence[float]) -> list[int]:
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda name: nearest(aspects, inside(root, name)), ids))

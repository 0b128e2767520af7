"""The demo's pictures: views of disjoint crops of the photographs that scikit-image carries inside its wheel.

An *instance* is one square crop. Its views are random perspectives, crops, colours, blurs and occlusions of that square
alone, so two instances never share a pixel. Photographs are divided between training and test as a whole: what the test
measures is the retrieval of things, and of scenes, that training has never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from hamlet.training.data import augmentation
from hamlet.training.recipe import AugmentRecipe

TRAIN_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "clock_motion",
    "coins",
    "grass",
    "ihc",
    "moon",
    "retina",
    "rocket",
    "text",
)
TEST_PHOTOGRAPHS = (
    "chelsea",
    "coffee",
    "gravel",
    "hubble_deep_field",
    "motorcycle_left",
    "page",
)
SMALLEST_CROP = 84
CROPS_ALONG = 6
FLAT = 6.0


@dataclass(frozen=True)
class Instance:
    """One square crop: its photograph, its place there (left, top, right, bottom; pixels) and its pixels.

    `pixels` is a uint8 tensor (3, side, side).
    """

    photograph: str
    box: tuple[int, int, int, int]
    pixels: Tensor

    @property
    def name(self) -> str:
        """The name of the instance, unique over all photographs: `coffee-100-200`."""
        return f"{self.photograph}-{self.box[0]}-{self.box[1]}"


@cache
def photograph(name: str) -> Tensor:
    """One of scikit-image's bundled photographs as a uint8 tensor (3, H, W); grey ones get three equal channels.

    The file is read from the installed package itself, never through `skimage.data`, which may download.

    Example:
        >>> photograph("coffee").shape
        torch.Size([3, 400, 600])

    Raises:
        FileNotFoundError: the installed scikit-image does not carry this photograph.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    for path in (folder / f"{name}.png", folder / f"{name}.jpg"):
        if path.is_file():
            with Image.open(path) as image:
                return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).contiguous()
    raise FileNotFoundError(
        f"{folder}: no photograph {name!r}; reinstall with `pip install --force-reinstall scikit-image`"
    )


def instances(names: Sequence[str]) -> list[Instance]:
    """Cut photographs into the squares of a regular grid, leaving out the flat ones (empty sky, the edge of a slide).

    A square's side is a sixth of the photograph's longer side, and at least 84 pixels; the grid is centred.

    Example:
        >>> len(instances(["coffee"]))
        24
    """
    found = []
    for name in names:
        pixels = photograph(name)
        height, width = pixels.shape[1:]
        side = max(SMALLEST_CROP, max(height, width) // CROPS_ALONG)
        top_margin, left_margin = height % side // 2, width % side // 2
        for top in range(top_margin, height - side + 1, side):
            for left in range(left_margin, width - side + 1, side):
                crop = pixels[:, top : top + side, left : left + side]
                if crop.float().mean(0).std() >= FLAT:
                    found.append(Instance(name, (left, top, left + side, top + side), crop.clone()))
    return found


class Views:
    """Views of instances: `views[index, seed, size]` is a float tensor (3, size, size) in [0, 1], a function of those.

    Rendered views are kept in memory as uint8, so that a second model trained on the same ones gets them for nothing.

    Args:
        instances: what is viewed.
        augment: random perspective, scale, crop, colour, blur and occlusion; see `hamlet.training.data.augmentation`.
        size: height and width of all views, in pixels.

    Attributes:
        ids: the instances' names.
        labels: the class of each entry, its instance.
        hierarchy: coarser classes of each entry; here one level, its photograph.

    Raises:
        ValueError: no instances.
    """

    def __init__(self, instances: Sequence[Instance], augment: AugmentRecipe, size: int) -> None:
        if not instances:
            raise ValueError("instances: got none, expected at least one")
        photographs = sorted({instance.photograph for instance in instances})
        self.ids = [instance.name for instance in instances]
        self.labels = list(range(len(instances)))
        self.hierarchy = [[photographs.index(instance.photograph) for instance in instances]]
        # A little larger than a view, which is all that a crop of half of it needs.
        side = [size * 3 // 2, size * 3 // 2]
        self._squares = [v2.functional.resize(instance.pixels, side, antialias=True) for instance in instances]
        self._transform = augmentation(augment, size)
        self._rendered: dict[tuple[int, int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        if key not in self._rendered:
            index, seed, _ = key
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                view = self._transform(self._squares[index])
            self._rendered[key] = v2.functional.to_dtype(view, torch.uint8, scale=True)
        return v2.functional.to_dtype(self._rendered[key], torch.float32, scale=True)

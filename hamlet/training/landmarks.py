"""Google Landmarks v2 as a training set, with its landmarks' categories as coarser labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hamlet.retrieval.datasets import load_landmark_training
from hamlet.training.data import PictureSet, numbered
from hamlet.training.recipe import AugmentRecipe


class LandmarkDataset(PictureSet):
    """The cleaned training set, read from its own files: 1,580,470 pictures of 81,313 landmarks.

    The coarser labels are the landmark's hierarchical label and its supercategory; a landmark of which the files leave
    one empty has none of that level (-1). Their "category" is the page about the landmark itself, so it tells no more
    than the label. Pictures are not read beforehand, as that many would take hours: one
    that is broken stops training with its name.

    Args:
        folder: see :func:`hamlet.retrieval.datasets.load_landmark_training`.
        augment, aspects: see :class:`hamlet.training.data.PictureSet`.

    Raises:
        ValueError: files that are missing or broken.
    """

    def __init__(self, folder: str | Path, augment: AugmentRecipe, aspects: Sequence[float] = (1.0,)) -> None:
        found = load_landmark_training(folder)
        landmarks = found.labels.tolist()
        self.classes = sorted(set(landmarks))
        places = {landmark: place for place, landmark in enumerate(self.classes)}
        levels = [[found.hierarchy.get(landmark, ("", "", ""))[level] for landmark in landmarks] for level in (1, 0)]
        super().__init__(
            found.images.root,
            found.images.names,
            [places[landmark] for landmark in landmarks],
            [numbered(level) for level in levels] if found.hierarchy else [],
            augment,
            aspects,
        )

"""Google Landmarks v2 as a training set, with its landmarks' categories as coarser labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hamlet.images import load_image
from hamlet.retrieval.datasets import load_landmark_training
from hamlet.training.data import PictureSet, faults, left_out, numbered
from hamlet.training.once import once
from hamlet.training.recipe import AugmentRecipe


class LandmarkDataset(PictureSet):
    """The cleaned training set, read from its own files: 1,580,470 pictures of 81,313 landmarks.

    The coarser labels are the landmark's hierarchical label and its supercategory; a landmark of which the files leave
    one empty has none of that level (-1). Their "category" is the page about the landmark itself, so it tells no more
    than the label. Pictures that the teacher could not read are left out; without a teacher, ``check``
    reads all of them beforehand. One that is found to be broken later stops training with its name.

    Args:
        folder: see :func:`hamlet.retrieval.datasets.load_landmark_training`.
        augment, aspects: see :class:`hamlet.training.data.PictureSet`.
        without: pictures to leave out, each with the reason.
        check: read all pictures, and leave out those that cannot be read.
        progress: show a bar on stderr while they are read.

    Raises:
        ValueError: files that are missing or broken.
    """

    def __init__(
        self,
        folder: str | Path,
        augment: AugmentRecipe,
        aspects: Sequence[float] = (1.0,),
        *,
        without: Sequence[tuple[str, str]] = (),
        check: bool = False,
        progress: bool = False,
    ) -> None:
        found = once(lambda: load_landmark_training(folder))
        images = found.images
        skipped = left_out(images.names, without)
        if check:
            todo = [name for name in images.names if name not in skipped]
            skipped |= once(lambda: faults(todo, lambda name: load_image(images.path(name), 1), progress=progress))
        kept = [place for place, name in enumerate(images.names) if name not in skipped]
        landmarks = found.labels[kept].tolist()
        self.classes = sorted(set(landmarks))
        if len(self.classes) < 2:
            raise ValueError(f"data.root: {folder} has {len(self.classes)} landmarks, expected at least two")
        places = {landmark: place for place, landmark in enumerate(self.classes)}
        names = [[found.hierarchy.get(landmark, ("", "", ""))[level] for landmark in landmarks] for level in (1, 0)]
        super().__init__(
            images.root,
            [images.names[place] for place in kept],
            [places[landmark] for landmark in landmarks],
            [numbered(level) for level in names] if found.hierarchy else [],
            augment,
            aspects,
        )
        self.skipped = sorted(skipped.items())

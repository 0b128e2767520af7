"""A teacher that needs no download: image statistics made by hand, standing in for a multimodal model.

MKDM distils from CLIP where its weights are at hand. The demo has none, so its teacher is a vector of classical
statistics of each clean training crop: histograms of oriented gradients, local binary patterns and colours, all by
scikit-image. The part of the text prototypes is played by one prototype for each photograph, the mean of its crops'
vectors, and that of a crop's caption by what lies midway between its own vector and its photograph's. It knows no
language; it exercises the same losses, schedules and caches, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hamlet.demo.data import Instance
from hamlet.training import TeacherCache

TEACHER_NAME = "hand-made image statistics (gradients, binary patterns, colours), not a multimodal model"
SIDE = 96
DIMENSION = 64
LOGIT_SCALE = 10.0


def make_teacher(instances: Sequence[Instance]) -> TeacherCache:
    """The teacher's cache for the instances: their embeddings, and their photographs' as prototypes."""
    embeddings = teacher_embeddings(instances)
    photographs = sorted({instance.photograph for instance in instances})
    labels = [photographs.index(instance.photograph) for instance in instances]
    means = prototypes(embeddings, labels)
    return TeacherCache(
        ids=tuple(instance.name for instance in instances),
        embeddings=embeddings,
        prototypes=means,
        captions=F.normalize(embeddings + means[labels], dim=1),
        logit_scale=LOGIT_SCALE,
        name=TEACHER_NAME,
    )


def teacher_embeddings(instances: Sequence[Instance], dimension: int = DIMENSION) -> Tensor:
    """Statistics of the clean crops, whitened: float32 (n, dimension), L2-normalised.

    Each family of statistics has unit length before they are joined, so that none outweighs the others; principal
    components of the given crops then bring them to `dimension`, at most one less than there are crops.

    Example:
        >>> from hamlet.demo.data import instances
        >>> teacher_embeddings(instances(["coffee"]), dimension=16).shape
        torch.Size([24, 16])
    """
    if not 1 <= dimension < len(instances):
        raise ValueError(f"dimension: got {dimension}, expected 1 to {len(instances) - 1}, one less than the crops")
    statistics = np.stack([_statistics(instance.pixels) for instance in instances])
    centred = torch.from_numpy(statistics - statistics.mean(0))
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    # The signs of singular vectors are arbitrary: fixing them makes the cache the same on every machine.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    return F.normalize(centred @ components[:dimension].T, dim=1).float()


def prototypes(embeddings: Tensor, labels: Sequence[int]) -> Tensor:
    """The mean direction of each label's embeddings: (labels, dimension), L2-normalised, in the order of the labels.

    Example:
        >>> prototypes(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), [0, 0, 1])
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]])
    """
    index = torch.as_tensor(labels)
    sums = torch.zeros(int(index.max()) + 1, embeddings.shape[1]).index_add_(0, index, embeddings)
    return F.normalize(sums, dim=1)


def _statistics(pixels: Tensor) -> NDArray[np.float64]:
    from skimage.color import rgb2gray, rgb2lab
    from skimage.feature import hog, local_binary_pattern
    from skimage.transform import resize

    image = resize(pixels.permute(1, 2, 0).numpy(), (SIDE, SIDE), anti_aliasing=True)
    grey = rgb2gray(image)
    gradients = hog(grey, orientations=8, pixels_per_cell=(24, 24), cells_per_block=(1, 1))
    patterns = []
    for radius in (1, 2):
        codes = local_binary_pattern((grey * 255).astype(np.uint8), 8 * radius, radius, "uniform")
        patterns.append(np.bincount(codes.astype(np.int64).ravel(), minlength=8 * radius + 2))
    colours, _ = np.histogramdd(
        rgb2lab(image).reshape(-1, 3), bins=(4, 6, 6), range=((0, 100), (-60, 60), (-60, 60)), density=False
    )
    # Square roots of histograms: their inner product is the Bhattacharyya coefficient.
    families = (gradients, np.sqrt(np.concatenate(patterns)), np.sqrt(colours.ravel()))
    return np.concatenate([family / max(float(np.linalg.norm(family)), 1e-12) for family in families])

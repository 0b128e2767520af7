"""Pictures and descriptors to measure retrieval on, and what their indices must find and cost at least."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import skimage.data
from faiss.contrib.exhaustive_search import knn_ground_truth
from numpy.typing import NDArray
from PIL import Image

from hamlet.images import ImageList, list_images
from hamlet.retrieval.neighbours import blocks, normalise, scratch

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "retina", "rocket")
SHAPES = ((1600, 1200), (1200, 1600), (1600, 1067), (1400, 1400), (1600, 900))
NEAR = 0.8
"""Cosine of a descriptor to the centre of its cluster."""
ROUNDING = 1e-6
"""Between two scores in float32 whose order may be either."""


def write_pictures(folder: Path, count: int) -> ImageList:
    """JPEG files of the shapes in turn, from the photographs that scikit-image carries."""
    for number, (photograph, shape) in zip(range(count), itertools.cycle(zip(PHOTOGRAPHS, SHAPES, strict=True))):
        pixels = getattr(skimage.data, photograph)()
        picture = Image.fromarray(pixels).convert("RGB").resize(shape, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.jpg", quality=90)
    return list_images(folder)


@dataclass
class Collection:
    """Random unit vectors, isotropic or around random centres, in a nameless file that is mapped, and queries alike.

    Args:
        count: of descriptors.
        dim: numbers of each.
        queries: how many.
        clusters: how many centres; 0 for isotropic.
        folder: on whose disk the file lies.
    """

    count: int
    dim: int
    queries: int
    clusters: int
    folder: Path
    rows: NDArray[np.float32] = field(init=False)
    asked: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._centres = self._directions(self.clusters)
        self.rows = scratch((self.count, self.dim), self.folder)
        for block in blocks(self.count):
            self.rows[block] = self._draw(len(self.rows[block]))
        self.asked = self._draw(self.queries)

    def __str__(self) -> str:
        return f"{self.count:,} x {self.dim}{f' in {self.clusters:,} clusters' if self.clusters else ''}"

    @property
    def ids(self) -> list[str]:
        return [str(row) for row in range(self.count)]

    def _directions(self, count: int) -> NDArray[np.float32]:
        return normalise(self._random.standard_normal((count, self.dim), dtype=np.float32))

    def _draw(self, count: int) -> NDArray[np.float32]:
        rows = self._directions(count)
        if not self.clusters:
            return rows
        chosen = self._centres[self._random.integers(self.clusters, size=count)]
        return normalise(NEAR * chosen + (1 - NEAR**2) ** 0.5 * rows)

    def nearest(self, k: int) -> NDArray[np.float64]:
        """The k largest inner products of each query, in float64, best first."""
        # Twice as many as are wanted, so that rounding in float32 costs none of them.
        parts = (np.asarray(self.rows[block]) for block in blocks(self.count))
        candidates = knn_ground_truth(self.asked, parts, min(2 * k, self.count), faiss.METRIC_INNER_PRODUCT)[1]
        return -np.sort(-self.products(candidates))[:, :k]

    def products(self, found: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each query with the rows found for it, in float64."""
        rows = (self.rows[places].astype(np.float64) for places in found)
        return np.stack([each @ query for each, query in zip(rows, self.asked.astype(np.float64), strict=True)])

    def check(self, found: Any, right: NDArray[np.float64]) -> None:
        """Raise ValueError where the rows found for the queries are not the nearest, each once."""
        places = np.asarray(found).astype(np.int64)
        if places.shape != right.shape or any(len(set(each)) < len(each) for each in places.tolist()):
            raise ValueError(f"found {places.shape} neighbours, some perhaps twice, expected {right.shape}, each once")
        farther = int((self.products(places) < right[:, -1:] - ROUNDING).sum())
        if farther:
            raise ValueError(f"wrong neighbours: {farther} of {right.size} are not among the nearest")


def search_operations(index: Any, queries: NDArray[np.float32], k: int) -> float:
    """Of an index of inverted lists of product codes, for these queries: every lookup of a code's part and add is one.

    The queries are transformed, compared with all centroids and with all words of the codes, and then every code of the
    lists that are searched is summed up, as many as faiss itself counts.
    """
    inverted = faiss.downcast_index(faiss.extract_index_ivf(index))
    transform = index.d * inverted.d if isinstance(index, faiss.IndexPreTransform) else 0
    statistics = faiss.cvar.indexIVF_stats
    statistics.reset()
    index.search(queries, k)
    each = 2 * (transform + inverted.d * (inverted.nlist + inverted.pq.ksub))
    return float(len(queries) * each + statistics.ndis * inverted.pq.M)


def own_memory(run: Callable[[], Any]) -> int:
    """Bytes that the process itself allocates at its highest in a run, without the pages of mapped files.

    Those can be dropped. Linux's own record of the highest counts both, so it is watched while it runs.
    """
    before, over = _allocated(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, _allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return peak - before


def _allocated() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

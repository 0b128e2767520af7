"""Bringing an index up to date with a folder that has changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamlet.images import ImageList
from hamlet.retrieval.stores import Store, open_store, save_store


def stamps_of(images: ImageList) -> NDArray[np.int64]:
    """A number for each image, int64 (n,), that changes with its file's size or time of change; 0 if it is gone."""
    return np.array([_stamp(images.root, name) for name in images.names], np.int64)


class Update:
    """What has to be done to bring an index up to date with a list of images.

    Args:
        place: of the index.
        images: as they are now.
        stamps: int64 (n,), of them now; see :func:`stamps_of`.
        metadata: what the index would be made with now; it must have been made with the same.

    Attributes:
        store: the index.
        wanted: images that are new or have changed: they have to be described.
        gone: ids whose image is gone or has changed.

    Raises:
        ValueError: no such index, one of another model, folder or settings, or one of a kind that cannot remove when
            something has to be.
    """

    def __init__(
        self, place: Path | str, images: ImageList, stamps: NDArray[np.int64], metadata: dict[str, Any]
    ) -> None:
        self.place = place
        self.store: Store = open_store(place)
        _check_same(self.store.metadata, metadata, place)
        ids, held = self.store.rows()
        rows = ids.find(images.names)
        known = rows >= 0
        known[known] = held[rows[known]] == stamps[known]
        self.wanted = ImageList(images.root, _chosen(images.names, ~known), images.skipped)
        kept = np.zeros(len(ids), bool)
        kept[rows[known]] = True
        self.gone = [ids[row] for row in np.flatnonzero(~kept).tolist()]
        if self.gone:
            self.store.check_removable()

    def apply(self, descriptors: NDArray[Any], ids: Sequence[str], stamps: NDArray[np.int64]) -> Store:
        """Remove what is gone, add the descriptors of what was wanted, as far as there are any, and keep the result."""
        if self.gone:
            self.store.remove(self.gone)
        if ids:
            self.store.add(descriptors, ids, stamps=stamps)
        save_store(self.store, self.place)
        return self.store


def _check_same(held: dict[str, Any], now: dict[str, Any], place: Path | str) -> None:
    # These files may have moved: a fingerprint and a digest tell what is in them.
    for name in sorted((held.keys() | now.keys()) - {"checkpoint", "whitening"}):
        if held.get(name) != now.get(name):
            raise ValueError(
                f"{place}: made with {name} {held.get(name)}, not {now.get(name)}; "
                "update it with what it was made with, or make it again"
            )


def _chosen(names: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [names[position] for position in np.flatnonzero(mask).tolist()]


def _stamp(root: Path, name: str) -> int:
    try:
        about = os.stat(Path(root, name))
    except (OSError, ValueError):
        return 0
    digest = hashlib.blake2b(f"{about.st_size} {about.st_mtime_ns}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)

"""Bringing an index up to date with a folder that has changed since.

What has to be described is written down before it is, in a folder beside the index: a numbered folder for each list of
images, with the list in ``images.json`` and the list's extraction in ``extraction/``. An update that was killed left
lists there, and the next goes on with those whose images are as they were; what they lack makes one list more. Only
when the index holds it all do the folders go, so that whatever is there can be done again, or has been done already.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hamlet.files import write_json
from hamlet.images import ImageList
from hamlet.retrieval.ids import Ids
from hamlet.retrieval.shards import alone_in
from hamlet.retrieval.stores import Store, beside, open_store, save_store

_LIST, _EXTRACTION = "images.json", "extraction"
# These files may have moved: a fingerprint and a digest tell what is in them.
_MOVABLE = ("checkpoint", "whitening")


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
        dtype: in which descriptors are kept until they are added.

    Attributes:
        store: the index.
        wanted: images that are new or have changed, and have to be described: lists, each with the folder of its
            extraction.
        gone: ids whose image is gone or has changed.

    Raises:
        ValueError: no such index, one of another model, folder or settings, or one of a kind that cannot remove when
            something has to be; a folder OUT.update that no update made.
    """

    def __init__(
        self, place: Path | str, images: ImageList, stamps: NDArray[np.int64], metadata: dict[str, Any], dtype: str
    ) -> None:
        self.place = place
        self.folder = beside(place, ".update")
        self.images, self.stamps = Ids.of(images.names), stamps
        self.settings = {name: value for name, value in metadata.items() if name not in _MOVABLE} | {"dtype": dtype}
        self.store: Store = open_store(place)
        _check_same(self.store.metadata, metadata, place)
        ids, held = self.store.rows()
        self.store.release()  # Processes that decode images are forked, and hours may go by.
        rows = ids.find(images.names)
        known = rows >= 0
        known[known] = held[rows[known]] == stamps[known]
        kept = np.zeros(len(ids), bool)
        kept[rows[known]] = True
        self.gone = [ids[row] for row in np.flatnonzero(~kept).tolist()]
        if self.gone:
            self.store.check_removable()
        begun = self._begun()
        missing = ~known
        for names in begun.values():
            missing[self.images.find(names)] = False
        if missing.any() or (images.skipped and not begun):
            names = [images.names[position] for position in np.flatnonzero(missing).tolist()]
            begun[self._begin(names, stamps[missing], max(begun, default=None))] = names
        self.wanted = [(ImageList(images.root, names), folder / _EXTRACTION) for folder, names in begun.items()]
        if self.wanted:
            first, folder = self.wanted[0]
            self.wanted[0] = replace(first, skipped=images.skipped), folder

    def apply(self, parts: Iterable[tuple[NDArray[Any], Sequence[str]]]) -> int:
        """Remove what is gone, add what was described of each list, keep the result; how many were added.

        What a killed update has added is left as it is.
        """
        if self.gone:
            self.store.remove(self.gone)
        held, _ = self.store.rows()
        count = 0
        for descriptors, ids in parts:
            new = np.flatnonzero(held.find(ids) < 0)
            if new.size:
                added = [ids[position] for position in new.tolist()]
                stamps = self.stamps[self.images.find(added)]
                self.store.add(descriptors if len(new) == len(ids) else descriptors[new], added, stamps=stamps)
                count += len(new)
        if count or self.gone:
            save_store(self.store, self.place)
        return count

    def finish(self) -> None:
        """Remove what lay beside the index until it was kept."""
        for _, extraction in self.wanted:
            # First what makes it a list: half an extraction without one is removed by the next update.
            (extraction.parent / _LIST).unlink()
            shutil.rmtree(extraction.parent)
        with suppress(OSError):  # What another update has begun meanwhile stays.
            self.folder.rmdir()

    def _begun(self) -> dict[Path, list[str]]:
        """Folder and names of each list that a killed update left, if its images are as they were; the others go."""
        found = {}
        for folder in sorted(self.folder.iterdir()) if self.folder.exists() else []:
            if not folder.name.isdecimal():
                raise ValueError(f"{self.folder}: holds {folder.name}, expected what an update left; remove it")
            try:
                content = json.loads((folder / _LIST).read_text())
            except OSError:
                content = None
            if content is not None and content["settings"] == self.settings:
                rows = self.images.find(content["names"])
                if (rows >= 0).all() and self.stamps[rows].tolist() == content["stamps"]:
                    found[folder] = content["names"]
                    continue
            with alone_in(folder / _EXTRACTION):
                shutil.rmtree(folder)
        return found

    def _begin(self, names: list[str], stamps: NDArray[np.int64], last: Path | None) -> Path:
        folder = self.folder / f"{1 + int(last.name) if last is not None else 1:06d}"
        write_json(folder / _LIST, {"settings": self.settings, "names": names, "stamps": stamps.tolist()})
        return folder


def _check_same(held: dict[str, Any], now: dict[str, Any], place: Path | str) -> None:
    for name in sorted((held.keys() | now.keys()) - {*_MOVABLE, "nprobe"}):
        if held.get(name) != now.get(name):
            raise ValueError(
                f"{place}: made with {name} {held.get(name)}, not {now.get(name)}; "
                "update it with what it was made with, or make it again"
            )


def _stamp(root: Path, name: str) -> int:
    try:
        about = os.stat(Path(root, name))
    except (OSError, ValueError):
        return 0
    digest = hashlib.blake2b(f"{about.st_size} {about.st_mtime_ns}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)

"""Tars of WebDataset's layout as a training set, where pictures are too many for files of their own.

A sample is a picture and its class, ``0001.jpg`` and ``0001.cls``, as webdataset's writers put them. The tars' headers
are read once, to index where each sample lies; training then reads a sample at its place, so that order and curriculum
are the same function of seed and step as with a folder. The tars may lie on several disks: links to them will do.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from hamlet.files import digest_files, write_json
from hamlet.images import EXTENSIONS, decode_image
from hamlet.training.data import DETAIL, Views, faults, left_out, levels, numbered
from hamlet.training.once import once
from hamlet.training.recipe import AugmentRecipe

INDEX = "index.json"
VERSION = 2


class TarDataset:
    """Pictures in the tars of a folder.

    A picture is known by its name in its tar, so the teacher's cache of a folder serves the tars that were packed from
    it. A class with slashes, as ``animals/cats``, has coarser ones, as a folder's has. Views are square.

    The index of the tars is kept in ``index.json`` beside them, where that can be written, and made again where a tar
    has changed. Each process reads through files of its own, so the loader's workers do not share a place in them.

    Args:
        root: folder of ``*.tar``.
        augment: random changes of a view.
        without: pictures to leave out, each with the reason.
        check: read all pictures, and leave out those that cannot be read.
        progress: show a bar on stderr while the tars are indexed.

    Raises:
        ValueError: no tars, a broken one, samples without a class, a name that comes twice, or fewer than two classes.
    """

    def __init__(
        self,
        root: str | Path,
        augment: AugmentRecipe,
        *,
        without: Sequence[tuple[str, str]] = (),
        check: bool = False,
        progress: bool = False,
    ) -> None:
        self.root = Path(root)
        samples = once(lambda: index_tars(self.root, progress=progress))
        self._places = {name: (tar, offset, size) for tar, name, offset, size, _ in samples}
        if len(self._places) < len(samples):
            [(twice, _)] = Counter(name for _, name, *_ in samples).most_common(1)
            raise ValueError(f"data.root: the tars of {root} hold {twice} twice, expected different names")
        skipped = left_out(list(self._places), without)
        if check:
            todo = [name for name in self._places if name not in skipped]
            skipped |= once(lambda: faults(todo, lambda name: self._read(name, 1), progress=progress))
        kept = [(name, label) for _, name, *_, label in samples if name not in skipped]
        self.ids = [name for name, _ in kept]
        classes = levels([label for _, label in kept])
        self.classes = sorted(set(classes[0])) if classes else []
        if len(self.classes) < 2:
            raise ValueError(f"data.root: {root} has {len(self.classes)} classes, expected at least two")
        self.labels, *self.hierarchy = [numbered(level) for level in classes]
        self.skipped: Sequence[tuple[str, str]] = sorted(skipped.items())
        self.views = Views(augment, (1.0,), [0] * len(kept))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        name = self.ids[key[0]]
        try:
            picture = self._read(name, DETAIL * key[2])
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
        return self.views.render(picture, key)

    def _read(self, name: str, longest_side: int) -> Tensor:
        tar, offset, size = self._places[name]
        with open(self.root / tar, "rb") as file:
            file.seek(offset)
            return decode_image(io.BytesIO(file.read(size)), longest_side)


def index_tars(root: Path, *, progress: bool = False) -> list[list[Any]]:
    """Where each picture lies: [tar, name, offset, size, class], in the order of the tars' names and of each tar.

    Raises:
        ValueError: no such folder, no tars, a broken one, or a picture without a class.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: {root} is not a folder")
    tars = sorted(path.name for path in root.glob("*.tar"))
    if not tars:
        raise ValueError(f"data.root: {root} holds no file that ends in .tar")
    state = f"{VERSION} {digest_files(root, tars)}"
    kept = _kept_index(root / INDEX, state, set(tars))
    if kept is not None:
        return kept
    shown = track(tars, "indexing tars", console=Console(stderr=True), disable=not progress)
    samples = [[tar, *sample] for tar in shown for sample in _samples(root / tar)]
    # A folder that cannot be written to is indexed at each start.
    with suppress(OSError):
        write_json(root / INDEX, {"state": state, "samples": samples})
    return samples


def _kept_index(path: Path, state: str, tars: set[str]) -> list[list[Any]] | None:
    """The index that was kept of tars in this state; None where there is none, or one that is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        samples: list[list[Any]] = kept["samples"] if kept["state"] == state else []
        # What is read is read from the folder's tars alone, whatever the file says.
        whole = all(tar in tars and min(offset, size) >= 0 for tar, _, offset, size, _ in samples)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return samples if samples and whole else None


def _samples(path: Path) -> list[tuple[str, int, int, str]]:
    pictures: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # What follows the first dot of the last part is the kind, as webdataset splits names.
                name = PurePosixPath(member.name)
                key, _, kind = name.name.partition(".")
                key = (name.parent / key).as_posix()
                if member.isfile() and kind == "cls" and (content := tar.extractfile(member)) is not None:
                    classes[key] = content.read(1000).decode().strip()
                elif member.isfile() and f".{kind.lower()}" in EXTENSIONS:
                    pictures[key] = (name.as_posix(), member.offset_data, member.size)
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {path} is no tar that can be read ({error})") from error
    if missing := sorted(key for key in pictures if not classes.get(key)):
        raise ValueError(f"data.root: {path} has no class of {len(missing)} pictures, such as {missing[0]}.cls")
    return [(*place, classes[key]) for key, place in pictures.items()]

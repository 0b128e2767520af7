"""Tars of WebDataset's layout as a training set, where pictures are too many for files of their own.

A sample is a picture and its class, ``0001.jpg`` and ``0001.cls``, as webdataset's writers put them. The tars' headers
are read once, to index where each sample lies; training then reads a sample at its place, so that order and curriculum
are the same function of seed and step as with a folder. The tars may lie on several disks: links to them will do.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from hamlet.files import digest_files, write_json
from hamlet.images import EXTENSIONS, decode_image
from hamlet.training.data import DETAIL, Views, numbered
from hamlet.training.recipe import AugmentRecipe

INDEX = "index.json"


class TarDataset:
    """Pictures in the tars of a folder.

    The index of the tars is kept in ``index.json`` beside them, and made again where a tar has changed. Views are
    square. Each process reads through files of its own, so the loader's workers do not share a place in them.

    Args:
        root: folder of ``*.tar``.
        augment: random changes of a view.
        progress: show a bar on stderr while the tars are indexed.

    Raises:
        ValueError: no tars, a broken one, samples without a class, or fewer than two classes.
    """

    hierarchy: Sequence[Sequence[int]] = ()
    skipped: Sequence[tuple[str, str]] = ()

    def __init__(self, root: str | Path, augment: AugmentRecipe, *, progress: bool = False) -> None:
        self.root = Path(root)
        samples = index_tars(self.root, progress=progress)
        self.ids = [f"{tar}/{key}" for tar, key, *_ in samples]
        self.classes = sorted({label for *_, label in samples})
        if len(self.classes) < 2:
            raise ValueError(f"data.root: {root} has {len(self.classes)} classes, expected at least two")
        self.labels = numbered([label for *_, label in samples])
        self._places = [(tar, offset, size) for tar, _, offset, size, _ in samples]
        self.views = Views(augment, (1.0,), [0] * len(samples))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int, int]) -> Tensor:
        tar, offset, size = self._places[key[0]]
        try:
            with open(self.root / tar, "rb") as file:
                file.seek(offset)
                picture = decode_image(io.BytesIO(file.read(size)), DETAIL * key[2])
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.ids[key[0]]}: {error}") from error
        return self.views.render(picture, key)


def index_tars(root: Path, *, progress: bool = False) -> list[list[Any]]:
    """Where each sample lies: [tar, key, offset, size, class], in the order of the tars' names and of each tar.

    Raises:
        ValueError: no such folder, no tars, a broken one, or a picture without a class.
    """
    if not root.is_dir():
        raise ValueError(f"data.root: {root} is not a folder")
    names = sorted(path.name for path in root.glob("*.tar"))
    if not names:
        raise ValueError(f"data.root: {root} holds no file that ends in .tar")
    state = digest_files(root, names)
    path = root / INDEX
    if path.is_file():
        kept = json.loads(path.read_text())
        if isinstance(kept, dict) and kept.get("state") == state:
            return list(kept["samples"])
    shown = track(names, "indexing tars", console=Console(stderr=True), disable=not progress)
    samples = [[name, *sample] for name in shown for sample in _samples(root / name)]
    write_json(path, {"state": state, "samples": samples})
    return samples


def _samples(path: Path) -> list[tuple[str, int, int, str]]:
    pictures: dict[str, tuple[int, int]] = {}
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
                    pictures[key] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.root: {path} is no tar that can be read ({error})") from error
    if missing := sorted(pictures.keys() - classes.keys()):
        raise ValueError(f"data.root: {path} has no class of {len(missing)} pictures, such as {missing[0]}.cls")
    return [(key, *place, classes[key]) for key, place in pictures.items()]

"""Updates of an index in processes of their own, each killed before another change to the disk.

``python -m tests.retrieval.killed_updates FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hamlet.images import list_images
from hamlet.retrieval import search
from hamlet.retrieval.search import build_index
from hamlet.retrieval.stores import open_store
from hamlet.retrieval.update import stamps_of
from tests.retrieval.conftest import Descriptor
from tests.retrieval.processes import finish


def paint(folder: Path, number: int, seed: int = 0) -> None:
    pixels = np.random.default_rng([number, seed]).integers(0, 256, (20, 24 + number % 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


def counted(limit: int, call: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        if len(seen) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(1)
        return call(*arguments, **options)

    return counting


def update(pictures: Path, place: Path, limit: int | None = None) -> int:
    """Update in a process of its own that is killed before its change number ``limit``; its exit code."""
    process = os.fork()
    if process:
        return finish(process)
    try:
        if limit is not None:
            seen: list[int] = []
            for name in ("replace", "unlink", "rmdir", "mkdir"):
                setattr(os, name, counted(limit, getattr(os, name), seen))
        build_index("double", pictures, place, longest_side=64, update=True, progress=False)
        check(pictures, place)
    except BaseException as error:
        print(f"{place}, killed before change {limit}: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def check(pictures: Path, place: Path) -> None:
    """The index holds each picture as it is, once."""
    images = list_images(pictures)
    store = open_store(place)
    ids, stamps = store.rows()
    held = dict(zip(ids, stamps.tolist(), strict=True))
    assert len(ids) == len(store) == len(images)
    assert held == dict(zip(images.names, stamps_of(images).tolist(), strict=True))
    model = Descriptor().eval()
    for name in images.names:
        pixels = torch.from_numpy(np.asarray(Image.open(pictures / name))).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            _, found = store.search(model([pixels]), 1)
        assert found == [[name]]


def main(folder: Path) -> None:
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(5):
        paint(pictures, number)
    make_first(pictures, folder / "first.index")
    (pictures / "0.png").unlink()
    paint(pictures, 1, seed=1)
    for number in range(5, 8):
        paint(pictures, number)
    limit = 0
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        here = folder / f"{limit}.index"
        shutil.copyfile(folder / "first.index", here)
        code = update(pictures, here, limit)
        if code == -signal.SIGKILL:
            if limit % 2:  # The folder goes on growing meanwhile.
                paint(pictures, 100 + limit)
            assert update(pictures, here) == 0
            left = [path.name for path in folder.iterdir() if path.suffix != ".index" and path != pictures]
            assert not left, left
        limit += 1
    assert code == 0
    print(limit - 1)


def make_first(pictures: Path, place: Path) -> None:
    process = os.fork()
    if not process:
        build_index("double", pictures, place, longest_side=64, progress=False)
        os._exit(0)
    assert finish(process) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    search.open_model = lambda name: (Descriptor().eval(), None)
    search.save_checkpoint = lambda path, model: None
    main(Path(sys.argv[1]))

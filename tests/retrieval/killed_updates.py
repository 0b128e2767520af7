"""Updates of an index in processes of their own, each killed before another change to the disk or to Milvus.

``python -m tests.retrieval.killed_updates FOLDER file 1`` kills before every change, ``... milvus 5`` before every
fifth of Milvus Lite's and ours.
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


def update(pictures: Path, place: Path | str, limit: int | None = None) -> int:
    """Update in a process of its own that is killed before its change number ``limit``; its exit code."""
    process = os.fork()
    if process:
        return finish(process)
    try:
        if limit is not None:
            seen: list[int] = []
            for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
                setattr(os, name, counted(limit, getattr(os, name), seen))
            if isinstance(place, str):
                from pymilvus import MilvusClient

                for name in ("insert", "delete"):
                    setattr(MilvusClient, name, counted(limit, getattr(MilvusClient, name), seen))
        build_index("double", pictures, place, longest_side=64, update=True, progress=False)
        check(pictures, place)
    except BaseException as error:
        print(f"{place}, killed before change {limit}: {error!r}", flush=True)
        os._exit(1)
    os._exit(0)


def check(pictures: Path, place: Path | str) -> None:
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


def main(folder: Path, kind: str, step: int) -> None:
    def place(name: object) -> Path | str:
        return folder / f"{name}.db" if kind == "file" else f"milvus://{folder}/{name}.db"

    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(5):
        paint(pictures, number)
    make_first(pictures, place("first"))
    (pictures / "0.png").unlink()
    paint(pictures, 1, seed=1)
    for number in range(5, 14):  # More than a batch, so that processes which decode them are forked.
        paint(pictures, number)
    limit = 0
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        here = place(limit)
        copy = shutil.copyfile if kind == "file" else shutil.copytree
        copy(folder / "first.db", folder / f"{limit}.db")
        code = update(pictures, here, limit)
        if code == -signal.SIGKILL:
            if limit % 2:  # The folder goes on growing meanwhile.
                paint(pictures, 100 + limit)
            assert update(pictures, here) == 0
            left = [path.name for path in folder.iterdir() if path.suffix != ".db" and path != pictures]
            assert not left, left
        limit += step
    assert code == 0
    print(limit - step)


def make_first(pictures: Path, place: Path | str) -> None:
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
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

"""Ground truths of retrieval benchmarks, read from their files as downloaded."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hamlet.images import ImageList, inside, list_images

REVISITED = ("roxford5k", "rparis6k")


@dataclass(frozen=True)
class Revisited:
    """A revisited Oxford or Paris benchmark (Radenović et al., CVPR 2018).

    Args:
        name: "roxford5k" or "rparis6k".
        database: its images; index i of the ground truth is ``database.names[i]``.
        queries: the query images, which are not in the database.
        boxes: for each query (left, top, right, bottom) in pixels.
        gnd: for each query lists of database indices under "easy", "hard" and "junk".
    """

    name: str
    database: ImageList
    queries: ImageList
    boxes: Sequence[Sequence[float]]
    gnd: Sequence[dict[str, list[int]]]


def load_revisited(name: str, folder: Path | str) -> Revisited:
    """Read ``gnd_<name>.pkl`` and check that every image that it names is in ``jpg/`` beside it.

    The file is looked for in ``folder`` and in ``folder/<name>``. It is read by an unpickler that admits dicts,
    lists, strings and numbers and nothing else, so a hostile file can run no code.

    Raises:
        ValueError: an unknown name; a file or images that are missing; a file that holds anything else than the
            ground truth.
    """
    if name not in REVISITED:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(REVISITED)}")
    file = f"gnd_{name}.pkl"
    root = next((root for root in (Path(folder), Path(folder, name)) if (root / file).is_file()), None)
    if root is None:
        raise ValueError(f"{folder}: no {file}, expected it there or in {Path(folder, name)}")
    truth = load_plain_pickle(root / file)
    gnd, database, queries = _check_truth(truth, root / file)
    _check_images(root / "jpg", [*database, *queries])
    return Revisited(
        name,
        ImageList(root / "jpg", database),
        ImageList(root / "jpg", queries),
        [query["bbx"] for query in gnd],
        [{kind: query[kind] for kind in ("easy", "hard", "junk")} for query in gnd],
    )


def load_labelled_folder(folder: Path | str) -> tuple[ImageList, list[str]]:
    """Images below ``folder`` and their labels: the first subfolder that an image lies in is its class.

    Raises:
        ValueError: no image, or one that lies in no subfolder.
    """
    images = list_images(folder)
    loose = [name for name in images.names if "/" not in name]
    if loose:
        raise ValueError(f"{folder}: {loose[0]!r} lies in no subfolder, expected one folder for each class")
    return images, [name.split("/", 1)[0] for name in images.names]


def load_plain_pickle(path: Path | str) -> Any:
    """Unpickle dicts, lists, tuples, strings and numbers, and refuse whatever names a class or a function.

    Raises:
        ValueError: any other content, or a file that is no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except _Refused as refused:
            raise ValueError(f"{path}: {refused}, expected dicts, lists, strings and numbers only") from None
        except Exception as error:  # A broken pickle may raise nearly anything.
            raise ValueError(f"{path}: not a whole pickle file ({type(error).__name__})") from error


class _Refused(Exception):
    pass


class _PlainUnpickler(pickle.Unpickler):
    # Plain containers and numbers have opcodes of their own; only what could run code is looked up by name.
    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(f"names {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("refers to an outside object")


def _check_truth(truth: Any, path: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    def refuse(what: str) -> NoReturn:
        raise ValueError(f"{path}: {what}, expected {{gnd, imlist, qimlist}} of a revisited benchmark")

    if not isinstance(truth, dict) or not {"gnd", "imlist", "qimlist"} <= truth.keys():
        refuse("no ground truth in it")
    for key in ("imlist", "qimlist"):
        names = truth[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
            refuse(f"{key} is not a list of names")
        if len(set(names)) != len(names):
            refuse(f"{key} has a name twice")
    gnd = truth["gnd"]
    if not isinstance(gnd, list) or len(gnd) != len(truth["qimlist"]):
        refuse("gnd is not a list with an entry for each query")
    for number, query in enumerate(gnd):
        if not isinstance(query, dict) or not _is_box(query.get("bbx")):
            refuse(f"query {number} has no box [x1, y1, x2, y2]")
        for kind in ("easy", "hard", "junk"):
            if not _are_indices(query.get(kind), len(truth["imlist"])):
                refuse(f"query {number} has no list {kind!r} of indices below {len(truth['imlist'])}")
    images, queries = ([f"{name}.jpg" for name in truth[key]] for key in ("imlist", "qimlist"))
    return gnd, images, queries


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and math.isfinite(side) for side in box)
        and box[0] < box[2]
        and box[1] < box[3]
    )


def _are_indices(indices: Any, size: int) -> bool:
    return isinstance(indices, list) and all(type(index) is int and 0 <= index < size for index in indices)


def _check_images(folder: Path, names: Sequence[str]) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected the {len(names)} images of the benchmark in it")
    for name in names:
        inside(folder, name)
    # One listing is quicker than asking for thousands of files; names with a folder in them are asked for.
    there = set(os.listdir(folder))
    missing = [name for name in names if name not in there and not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: lacks {len(missing)} of {len(names)} images, such as {missing[0]}")

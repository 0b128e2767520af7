"""Indexing a folder of pictures, searching it, whitening: what `hamlet index`, `search` and `whiten` do."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from hamlet import processes
from hamlet.files import check_writable
from hamlet.images import ImageList, inside, list_images
from hamlet.models import Model, create_model, fingerprint, load_checkpoint, save_checkpoint
from hamlet.retrieval.datasets import list_classes
from hamlet.retrieval.extraction import extract
from hamlet.retrieval.ids import Ids
from hamlet.retrieval.index import check_nprobe
from hamlet.retrieval.neighbours import scratch
from hamlet.retrieval.recall import Check, check_recall
from hamlet.retrieval.report import MAPS_CAPTION, Picture, Ranked, RankedSection, picture_with_maps, write_report
from hamlet.retrieval.stores import Store, beside, build_store, check_buildable, check_place, open_store
from hamlet.retrieval.update import Update, stamps_of
from hamlet.retrieval.whitening import Origin, Whitening, fit_learned, fit_pca, load_whitening, pairs_of_classes

MAKE_AGAIN = "or make the index again with `hamlet index`"


@dataclass(frozen=True)
class Found:
    """What a query found: the query's path and picture and, best first, the ids, paths and scores of its results."""

    query: Path
    picture: Picture
    ids: list[str]
    paths: list[Path]
    scores: list[float]


def open_model(name_or_checkpoint: str | Path) -> tuple[Model, Path | None]:
    """A model in evaluation mode on this process's GPU, or the CPU: of a checkpoint, or by name with random weights.

    Returns:
        The model, and the checkpoint's absolute path or None. Random weights come with a UserWarning; they are drawn
        with seed 0.

    Raises:
        ValueError: neither a checkpoint that can be read nor a model's name.
    """
    path = Path(name_or_checkpoint)
    checkpoint = path.resolve() if path.is_file() else None
    if checkpoint is not None:
        model, _ = load_checkpoint(checkpoint)
    elif path.suffix in {".pt", ".pth", ".safetensors"} or path.name != str(name_or_checkpoint):
        raise ValueError(f"{path}: no such checkpoint; name a file that `hamlet train` wrote, or a model")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = create_model(str(name_or_checkpoint))
        warnings.warn(
            f"{name_or_checkpoint} is a name, not a checkpoint: its weights are random (seed 0)", stacklevel=2
        )
    return model.eval().to(processes.device()), checkpoint


@dataclass(frozen=True)
class Built:
    """What :func:`build_index` made: the index, (name, reason) of the images left out, and what an update changed."""

    index: Store
    failures: list[tuple[str, str]]
    added: int
    removed: int
    check: Check | None = None


def build_index(
    model: str | Path,
    folder: Path,
    out: Path | str,
    *,
    factory: str | None = None,
    longest_side: int = 1024,
    scales: Sequence[float] = (1.0,),
    whiten: Path | None = None,
    dtype: str = "float32",
    nprobe: int | None = None,
    update: bool = False,
    check: bool = False,
    progress: bool = True,
) -> Built:
    """Describe the images of a folder or list, and make an index that remembers its model, images and settings.

    Random weights are kept beside the index, in OUT.model.pt, so that it can be searched. What has been extracted lies
    in OUT.extraction, for an update in OUT.update, until the index is made: a run that was stopped goes on from there.
    Of several processes, as ``torchrun`` starts them, each describes its share; the first alone makes the index.

    Args:
        model: checkpoint, or a model's name.
        folder: see `hamlet.retrieval.list_images`.
        out: the index file, or an address in Milvus: see `hamlet.retrieval.milvus_connection.Address`.
        factory: what `faiss.index_factory` takes; default "Flat", and for an update what the index was made with.
        longest_side: pixels to which images are shrunk.
        scales, dtype: see `hamlet.retrieval.extraction.extract`.
        whiten: file of a whitening learnt from descriptors of this model, longest side and scales.
        nprobe: how many inverted lists searches visit by default, see `hamlet.retrieval.Index.search`.
        update: keep the index, describe only images that are new or have changed, and remove those that are gone.
        check: compare the index with exact search, see `hamlet.retrieval.recall.check_recall`.
        progress: show a bar, and the images left out, on stderr.

    Raises:
        ValueError: no images, none that can be read, no such model, a whitening of other descriptors, or a factory that
            faiss does not know; for an update see `hamlet.retrieval.update.Update`.
        LeftToFirst: in every process but the first, when all images are described.
    """
    if update and check:
        raise ValueError("check: got it with an update, which does not have the descriptors of the images it keeps")
    if update and factory is not None:
        raise ValueError(f"factory: got {factory!r} with an update, which keeps that of the index")
    if update and nprobe is not None:
        raise ValueError(f"nprobe: got {nprobe} with an update, which keeps that of the index")
    check_nprobe(nprobe, "IVF" in (factory or ""), factory or "Flat")
    check_place(out)
    images = list_images(folder)
    network, checkpoint = open_model(model)
    origin = Origin(fingerprint(network), longest_side, tuple(scales))
    whitening = load_whitening(whiten, origin) if whiten is not None else None
    if not update:
        dim = network.descriptor_dim if whitening is None else len(whitening.projection)
        processes.from_first(lambda: check_buildable(out, factory or "Flat", dim))
    remembered = checkpoint or beside(out, ".model.pt").resolve()
    metadata = {
        "checkpoint": str(remembered),
        "fingerprint": origin.model,
        "root": str(images.root.resolve()),
        "longest_side": longest_side,
        "scales": list(scales),
        "whitening": None if whiten is None else str(whiten.resolve()),
        "whitening_digest": None if whiten is None else _digest(whiten),
        "nprobe": nprobe,
    }
    # Before they are read: an image that changes meanwhile is described again by the next update.
    stamps = stamps_of(images)
    old = None

    def begin_update() -> list[tuple[ImageList, Path]]:
        nonlocal old
        old = Update(out, images, stamps, metadata, dtype)
        return old.wanted

    partial = beside(out, ".extraction")
    wanted = processes.from_first(begin_update) if update else [(images, partial)]
    parts: list[tuple[NDArray[Any], list[str]]] = []
    failures: list[tuple[str, str]] = []
    for part, place in wanted:
        found = extract(network, part, place, longest_side=longest_side, scales=scales, dtype=dtype, progress=progress)
        failures += found.failures
        descriptors = found.descriptors
        if whitening is not None and found.ids and processes.rank() == 0:
            descriptors = whitening(descriptors, scratch((len(descriptors), len(whitening.projection)), place))
        parts.append((descriptors, found.ids))
    processes.leave_to_first()
    if old is not None:
        if checkpoint is None:
            save_checkpoint(remembered, network)
        added = old.apply((descriptors, ids) for descriptors, ids in parts if ids)
        old.finish()
        return Built(old.store, failures, added, len(old.gone))
    ((descriptors, ids),) = parts
    if not ids:
        raise ValueError(f"{folder}: none of its {len(images)} images can be read")
    if check and len(ids) < 2:
        raise ValueError("check: got it with one image that can be read, expected at least two to compare")
    stamps = stamps[Ids.of(images.names).find(ids)]
    if checkpoint is None:
        save_checkpoint(remembered, network)
    index = build_store(out, descriptors, ids, factory=factory or "Flat", stamps=stamps, metadata=metadata)
    # What is mapped of it can still be read. An update that was killed is of no more use to the new index.
    shutil.rmtree(partial)
    shutil.rmtree(beside(out, ".update"), ignore_errors=True)
    checked = check_recall(index, descriptors, ids) if check else None
    return Built(index, failures, len(ids), 0, checked)


def make_whitening(
    model: str | Path,
    source: Path,
    out: Path,
    *,
    learned: bool = False,
    dim: int | None = None,
    longest_side: int = 1024,
    scales: Sequence[float] = (1.0,),
    progress: bool = True,
) -> tuple[Whitening, list[tuple[str, str]]]:
    """Learn a whitening from images, and write it. What has been extracted lies in OUT.extraction until then.

    Of several processes each describes its share; the first alone goes on from there.

    Args:
        model: checkpoint, or a model's name.
        source: for PCA see `hamlet.retrieval.list_images`, for learned see `hamlet.retrieval.datasets.list_classes`.
        out: the file.
        learned: learn from pairs of one class rather than by PCA.
        dim, longest_side, scales: see :mod:`hamlet.retrieval.whitening` and `hamlet.retrieval.extraction.extract`.
        progress: show a bar, and the images left out, on stderr.

    Returns:
        The whitening and (name, reason) of the images left out.

    Raises:
        ValueError: no images, none that can be read, no such model, or too few images for the whitening wanted.
        LeftToFirst: in every process but the first, when all images are described.
    """
    check_writable(out)
    images, labels = list_classes(source) if learned else (list_images(source), [])
    network, _ = open_model(model)
    partial = out.with_name(f"{out.name}.extraction")
    found = extract(network, images, partial, longest_side=longest_side, scales=scales, progress=progress)
    processes.leave_to_first()
    if not found.ids:
        raise ValueError(f"{source}: none of its {len(images)} images can be read")
    origin = Origin(fingerprint(network), longest_side, tuple(scales))
    if learned:
        label = dict(zip(images.names, labels, strict=True))
        pairs = pairs_of_classes([label[name] for name in found.ids])
        if not pairs:
            raise ValueError(f"{source}: every class has a single image, expected two or more of some")
        whitening = fit_learned(found.descriptors, pairs, dim, origin=origin)
    else:
        whitening = fit_pca(found.descriptors, dim, origin=origin)
    whitening.save(out)
    shutil.rmtree(partial)
    return whitening, found.failures


def search_index(
    path: Path | str,
    queries: Sequence[Path],
    top: int = 10,
    *,
    maps: bool = False,
    memory_map: bool = False,
    nprobe: int | None = None,
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Search an index with images, described as the index was made: by its model, at its size and scales, whitened.

    Args:
        path: the index file, or its address in Milvus.
        queries: image files.
        top: results for each.
        maps: also draw the model's maps over each query.
        memory_map: see `hamlet.retrieval.Index.load`.
        nprobe: see `hamlet.retrieval.Index.search`; default what the index was made with.

    Returns:
        What each query that can be read found, in their order; and (query, reason) of the others.

    Raises:
        ValueError: no such index or query, no query that can be read, a model or whitening that is gone or has changed,
            an id that leaves the folder of the images, or several processes.
    """
    if processes.count() > 1:
        raise ValueError(f"processes: got {processes.count()}, expected one, as a search is not shared")
    missing = [str(query) for query in queries if not query.is_file()]
    if missing or not queries:
        raise ValueError(f"queries: no such file: {', '.join(missing)}" if missing else "queries: got none")
    index = open_store(path, memory_map=memory_map)
    model = _model_of(index, path)
    whitening = _whitening_of(index, path)
    index.release()  # Processes that decode images are forked.
    # An image list keeps below one root: for images from anywhere, that of the file system.
    root = Path(queries[0].resolve().anchor)
    names = [query.resolve().relative_to(root).as_posix() for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        settings = {name: index.metadata[name] for name in ("longest_side", "scales")}
        different = ImageList(root, list(dict.fromkeys(names)))
        extraction = extract(model, different, Path(folder), **settings, progress=False)
        # A query may come twice, or by two names: each gets its answer.
        reasons = dict(extraction.failures)
        given = list(zip(queries, names, strict=True))
        failures = [(str(query), reasons[name]) for query, name in given if name in reasons]
        if not extraction.ids:
            raise ValueError(f"queries: none can be read: {'; '.join(': '.join(failure) for failure in failures)}")
        descriptors = extraction.descriptors if whitening is None else whitening(extraction.descriptors)
        scores, ids = index.search(descriptors, top, nprobe=nprobe)
    images = Path(index.metadata["root"])
    answers = {
        name: (row_ids, [inside(images, row_id) for row_id in row_ids], row_scores[: len(row_ids)].tolist())
        for name, row_ids, row_scores in zip(extraction.ids, ids, scores, strict=True)
    }
    found = []
    for query, name in given:
        if name in answers:
            picture = picture_with_maps(model, query, str(query)) if maps else Picture(query, str(query))
            found.append(Found(query, picture, *answers[name]))
    return found, failures


def write_search_report(path: Path, found: Sequence[Found]) -> Path:
    """Write a self-contained page that shows queries with what they found, and return its path."""
    rows = [
        Ranked(
            each.picture,
            [
                Picture(image, name, score=score)
                for image, name, score in zip(each.paths, each.ids, each.scores, strict=True)
            ],
        )
        for each in found
    ]
    return write_report(path, "Search", [RankedSection("Queries", rows, MAPS_CAPTION)])


def _model_of(index: Store, path: Path | str) -> Model:
    """The model that made an index: from the checkpoint that it remembers, or one of that name beside the index."""
    needed = {"checkpoint", "fingerprint", "root", "longest_side", "scales", "whitening", "whitening_digest"}
    if missing := needed - index.metadata.keys():
        raise ValueError(f"{path}: does not tell its {', '.join(sorted(missing))}; make it with `hamlet index`")
    places = _places(index.metadata["checkpoint"], path)
    for place in places:
        model, _ = open_model(place)
        if fingerprint(model) == index.metadata["fingerprint"]:
            return model
    raise ValueError(f"{places[0]}: not the weights that made {path}; put those back, {MAKE_AGAIN}")


def _whitening_of(index: Store, path: Path | str) -> Whitening | None:
    """The whitening of an index's descriptors, found as its model is; None where it has none."""
    if index.metadata["whitening"] is None:
        return None
    places = _places(index.metadata["whitening"], path)
    for place in places:
        if _digest(place) == index.metadata["whitening_digest"]:
            return Whitening.load(place)
    raise ValueError(f"{places[0]}: not the whitening that made {path}; put that back, {MAKE_AGAIN}")


def _places(remembered: str, path: Path | str) -> list[Path]:
    """Where a file that made an index is: where it was, or beside the index."""
    file = Path(remembered)
    if places := [place for place in (file, beside(path, "").with_name(file.name)) if place.is_file()]:
        return places
    raise ValueError(f"{file}: a file that made {path} is gone; put it back or beside the index, {MAKE_AGAIN}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

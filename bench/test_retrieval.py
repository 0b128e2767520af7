"""From files to descriptors, and from descriptors to an index that answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from bench.comparison import Comparison
from bench.harness import compare
from hamlet import create_model
from hamlet.images import list_images, load_image
from hamlet.retrieval.extraction import extract
from hamlet.retrieval.index import Index

PICTURES, SIZE, LONGEST = 16, (480, 640), 320
DESCRIPTORS, DIM, QUERIES, NEAREST = 100_000, 512, 100, 100


@pytest.fixture
def pictures(tmp_path, full):
    """JPEG files of smooth noise, whose decoding costs about what a photograph's does."""
    generator = np.random.default_rng(0)
    for number in range(PICTURES if full else 2):
        coarse = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(tmp_path / f"{number:03}.jpg")
    return list_images(tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_large"])
def test_extraction(backbone, full, pictures, tmp_path, judged, benchmark, effort):
    model = create_model(f"hamlet_{backbone}").eval()
    longest = LONGEST if full else 64
    fresh = (tmp_path / f"out{number}" for number in itertools.count())

    def ours():
        found = extract(model, pictures, next(fresh), longest_side=longest, workers=0, progress=False)
        return [torch.from_numpy(np.array(found.descriptors))]

    def one_by_one():
        images = [load_image(pictures.path(name), longest_side=longest) for name in pictures.names]
        with torch.no_grad():
            return [torch.cat([model(image[None].float() / 255) for image in images])]

    comparison = Comparison(
        "extraction of descriptors",
        f"{backbone}, JPEG of {SIZE[1]}x{SIZE[0]} at {longest}",
        items={"images": len(pictures)},
    )
    contenders = {"HAMLET extract": lambda: ours, "one picture at a time": lambda: one_by_one}
    right = [found.double() for found in one_by_one()]
    judged(compare(benchmark, comparison, contenders, lambda: right, effort=effort, tolerance=1e-4))


@pytest.fixture(scope="module")
def collection(request):
    count = DESCRIPTORS if request.config.getoption("--benchmark") else 500
    drawn = np.random.default_rng(0).standard_normal((count + QUERIES, DIM), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn[QUERIES:], drawn[:QUERIES], [str(number) for number in range(count)]


def test_index_build(collection, judged, benchmark, effort):
    import faiss

    rows, queries, ids = collection

    def ours():
        return [torch.from_numpy(Index.build(rows, ids).search(queries[:1], 1)[0])]

    def bare():
        index = faiss.IndexFlatIP(DIM)
        index.add(rows)
        return [torch.from_numpy(index.search(queries[:1], 1)[0])]

    comparison = Comparison(
        "index, build and first answer", f"flat, {len(rows)} x {DIM}", items={"descriptors": len(rows)}
    )
    right = torch.from_numpy(rows.astype(np.float64) @ queries[0].astype(np.float64)).max().view(1, 1)
    contenders = {"HAMLET Index": lambda: ours, "faiss alone": lambda: bare}
    judged(compare(benchmark, comparison, contenders, lambda: [right], effort=effort, tolerance=1e-5))


def test_index_search(collection, judged, benchmark, effort):
    import faiss

    rows, queries, ids = collection
    index, bare = Index.build(rows, ids), faiss.IndexFlatIP(DIM)
    bare.add(rows)
    base, asked = torch.from_numpy(rows), torch.from_numpy(queries)

    def by_numpy():
        scores = queries @ rows.T
        best = np.argpartition(scores, -NEAREST, axis=1)[:, -NEAREST:]
        return [torch.from_numpy(-np.sort(-np.take_along_axis(scores, best, 1), axis=1))]

    comparison = Comparison(
        "index, search",
        f"{len(queries)} queries for {NEAREST} of {len(rows)} x {DIM}",
        operations=2.0 * len(queries) * rows.size,
        bytes=float(rows.nbytes),
        items={"queries": len(queries)},
    )
    contenders = {
        "HAMLET Index": lambda: lambda: [torch.from_numpy(index.search(queries, NEAREST)[0])],
        "faiss alone": lambda: lambda: [torch.from_numpy(bare.search(queries, NEAREST)[0])],
        "torch product and topk": lambda: lambda: [(asked @ base.T).topk(NEAREST)[0]],
        "NumPy product and argpartition": lambda: by_numpy,
    }
    right = (asked.double() @ base.double().T).topk(NEAREST)[0]
    judged(compare(benchmark, comparison, contenders, lambda: [right], effort=effort, tolerance=1e-5))

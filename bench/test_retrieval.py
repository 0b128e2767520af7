"""From files to descriptors, what is made of descriptors, and an index over them that answers.

``--scale N`` sets how many descriptors there are.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil

import faiss
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from bench.clock import seconds
from bench.comparison import COPY, PEAK, Comparison
from bench.harness import Effort, compare
from bench.measure.flops import count
from bench.measure.retrieval import Collection, own_memory, search_operations, write_pictures
from bench.peers.extraction import GeM, describe
from bench.yardsticks import copy as copy_of
from bench.yardsticks import limits, peak
from hamlet import create_model
from hamlet.images import load_image
from hamlet.retrieval.evaluate import best
from hamlet.retrieval.expansion import expand_queries
from hamlet.retrieval.extraction import extract
from hamlet.retrieval.index import Index
from hamlet.retrieval.neighbours import inner_products, normalise, scratch
from hamlet.retrieval.recall import check_recall
from hamlet.retrieval.whitening import fit_pca

EXTRACTIONS = {
    "resnet18-512-B1": ("resnet18", 512, 1),
    "resnet18-512-B8": ("resnet18", 512, 8),
    "resnet18-1024-B1": ("resnet18", 1024, 1),
    "resnet18-1024-B8": ("resnet18", 1024, 8),
    "mobilenetv3_large-512-B8": ("mobilenetv3_large", 512, 8),
}
PICTURES = 8
SCALE, SMALL_SCALE, DIM, SMALL_DIM = 100_000, 500, 512, 32
EXACT_QUERIES, QUERIES, SMALL_QUERIES, NEAREST = 100, 1000, 20, 100
FACTORIES = {"IVF-PQ": "IVF{},PQ64", "OPQ-IVF-PQ": "OPQ64_256,IVF{},PQ64"}
SMALL_FACTORIES = {"IVF-PQ": "IVF{},PQ4x4", "OPQ-IVF-PQ": "PCA16,IVF{},PQ4x4"}
"""PCA in place of OPQ, whose training takes as long on few descriptors as on many."""
A_CLUSTER = 100
"""Descriptors around one centre."""
LONG = Effort(rounds=5, seconds=1.0, least=3)
ALPHA, NEIGHBOURS = 3.0, 10


@pytest.fixture
def effort(full, effort):
    return LONG if full else effort


@pytest.mark.parametrize("name", EXTRACTIONS)
def test_extraction(name, full, tmp_path, judged, benchmark, effort):
    backbone, longest, batch = EXTRACTIONS[name]
    if not full:
        if longest > 512:
            pytest.skip("a small size like another's")
        longest = 64
    (tmp_path / "pictures").mkdir()
    pictures = write_pictures(tmp_path / "pictures", PICTURES if full else 2)
    paths = [pictures.path(name) for name in pictures.names]
    model = create_model(f"hamlet_{backbone}").eval()
    bare = GeM(model.config.backbone).eval()
    exact, bare_exact = (copy.deepcopy(each).double() for each in (model, bare))
    images = [load_image(path, longest_side=longest).float() / 255 for path in paths]
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]
    fresh = (tmp_path / f"out{number}" for number in itertools.count())
    settings = {"longest_side": longest, "batch_size": batch, "workers": 0, "progress": False}

    def ours():
        return [torch.from_numpy(np.array(extract(model, pictures, next(fresh), **settings).descriptors))]

    @torch.inference_mode()
    def right():
        return [torch.cat([exact(image[None].double()) for image in images])]

    @torch.inference_mode()
    def of_all(run):
        return [run(each) for each in batches]

    def load_all():
        return [load_image(path, longest_side=longest) for path in paths]

    operations = count(lambda: of_all(model))
    comparison = Comparison(
        "extraction of descriptors",
        f"{backbone}, JPEG of about 1600x1200 at {longest}, B{batch}, one process",
        operations=operations,
        items={"images": len(paths)},
    )
    contenders = {"HAMLET extract": lambda: ours, "timm backbone + GeM": lambda: lambda: describe(bare, paths, longest)}
    compare(
        benchmark,
        comparison,
        contenders,
        right,
        effort=effort,
        tolerance=1e-4,
        yardsticks={
            PEAK: peak(operations),
            "decoding and resizing": lambda: seconds(
                lambda: [load_image(path, longest_side=longest) for path in paths]
            ),
            "backbone alone": lambda: seconds(lambda: of_all(model.hfe)),
        },
        other_functions={"timm backbone + GeM": lambda: describe(bare_exact, paths, longest)},
    )
    judged(comparison)


@pytest.fixture(scope="module")
def scale(request):
    full = request.config.getoption("--benchmark")
    return request.config.getoption("--scale") or (SCALE if full else SMALL_SCALE)


@pytest.fixture(scope="module")
def isotropic(request, scale, tmp_path_factory):
    full = request.config.getoption("--benchmark")
    sizes = (DIM, EXACT_QUERIES) if full else (SMALL_DIM, SMALL_QUERIES)
    return Collection(scale, *sizes, clusters=0, folder=tmp_path_factory.mktemp("isotropic"))


@pytest.fixture(scope="module")
def clustered(request, scale, tmp_path_factory):
    full = request.config.getoption("--benchmark")
    sizes = (DIM, QUERIES) if full else (SMALL_DIM, SMALL_QUERIES)
    return Collection(scale, *sizes, clusters=max(1, scale // A_CLUSTER), folder=tmp_path_factory.mktemp("clustered"))


def test_whitening(isotropic, judged, benchmark, effort):
    """Learnt and applied; what is compared is the cosines of the first, since an axis may point either way."""

    def cosines(whitened):
        first = np.asarray(whitened[:SMALL_QUERIES], dtype=np.float64)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        return [torch.from_numpy(first @ first.T)]

    def ours():
        return cosines(fit_pca(isotropic.rows)(isotropic.rows, scratch(isotropic.rows.shape, isotropic.folder)))

    def theirs():
        return cosines(normalise(PCA(whiten=True, svd_solver="covariance_eigh").fit_transform(isotropic.rows)))

    def right():
        rows = isotropic.rows.astype(np.float64)
        rows -= rows.mean(0)
        values, vectors = np.linalg.eigh(rows.T @ rows)
        return cosines(rows[:SMALL_QUERIES] @ (vectors * values**-0.5))

    judged(
        compare(
            benchmark,
            Comparison(
                "descriptors, PCA whitening",
                f"{isotropic}, mapped",
                note=_allocated(ours),
                operations=4.0 * isotropic.rows.size * isotropic.dim,
                bytes=3.0 * isotropic.rows.nbytes,
                items={"descriptors": isotropic.count},
            ),
            {"HAMLET fit_pca": lambda: ours, "scikit-learn PCA": lambda: theirs},
            right,
            effort=effort,
            tolerance=1e-4,
            yardsticks=limits(4.0 * isotropic.rows.size * isotropic.dim, 3.0 * isotropic.rows.nbytes),
        )
    )


def test_query_expansion(isotropic, judged, benchmark, effort):
    asked, rows = isotropic.asked, isotropic.rows

    def plain(dtype):
        scores = asked.astype(dtype) @ rows.astype(dtype, copy=False).T
        places = np.argpartition(scores, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        weights = np.take_along_axis(scores, places, 1).clip(min=0) ** ALPHA
        total = asked.astype(dtype) + np.einsum("qk,qkd->qd", weights, rows[places])
        return [torch.from_numpy(total / np.linalg.norm(total, axis=1, keepdims=True))]

    def ours():
        return [torch.from_numpy(expand_queries(asked, rows, k=NEIGHBOURS, alpha=ALPHA))]

    comparison = _search("descriptors, alpha query expansion", isotropic, ours)
    contenders = {"HAMLET expand_queries": lambda: ours, "NumPy product and argpartition": lambda: lambda: plain("f4")}
    judged(_compared(benchmark, comparison, contenders, lambda: plain("f8"), effort))


def test_ranking(isotropic, judged, benchmark, effort):
    """All descriptors in the order of their scores, of each query."""
    rows, asked = isotropic.rows, isotropic.asked[:SMALL_QUERIES]

    def ours():
        scores = inner_products(asked, rows)
        return [torch.from_numpy(np.stack([each[best(each)] for each in scores]))]

    def theirs(dtype):
        scores = asked.astype(dtype) @ rows.astype(dtype, copy=False).T
        return [torch.from_numpy(np.take_along_axis(scores, np.argsort(-scores, axis=1), 1))]

    comparison = _search("descriptors, ranking of all", isotropic, ours, len(asked))
    contenders = {"HAMLET inner_products, best": lambda: ours, "NumPy argsort": lambda: lambda: theirs("f4")}
    judged(_compared(benchmark, comparison, contenders, lambda: theirs("f8"), effort))


def _search(group, collection, ours, queries=None):
    """The comparison of what scans all descriptors for each query."""
    queries = queries or collection.queries
    return Comparison(
        group,
        f"{queries} queries of {collection}, mapped",
        note=_allocated(ours) if ours else "",
        operations=2.0 * queries * collection.rows.size,
        bytes=float(collection.rows.nbytes),
        items={"queries": queries},
    )


def _allocated(ours):
    return f"HAMLET allocates {own_memory(ours) / 2**20:.0f} MiB of its own, beside the mapped files."


def _compared(benchmark, comparison, contenders, right, effort):
    """Against both limits, or that of a copy alone where there is no arithmetic."""
    moved = {COPY: copy_of(comparison.bytes)}
    yardsticks = limits(comparison.operations, comparison.bytes) if comparison.operations else moved
    return compare(benchmark, comparison, contenders, right, effort=effort, tolerance=1e-5, yardsticks=yardsticks)


@pytest.fixture(scope="module")
def flat(isotropic, tmp_path_factory):
    """The file of an exact index."""
    path = tmp_path_factory.mktemp("flat") / "flat.index"
    Index.build_file(path, isotropic.rows, isotropic.ids)
    yield path
    shutil.rmtree(path.parent)


def test_index_build(isotropic, tmp_path, judged, benchmark, effort):
    """In a file, with its first answer."""
    ids, first = isotropic.ids, isotropic.asked[:1]

    def ours():
        index = Index.build_file(tmp_path / "ours.index", isotropic.rows, ids)
        return [torch.from_numpy(index.search(first, 1)[0])]

    def bare():
        index = faiss.IndexFlatIP(isotropic.dim)
        index.add(np.ascontiguousarray(isotropic.rows))
        faiss.write_index(index, str(tmp_path / "bare.index"))
        return [torch.from_numpy(index.search(first, 1)[0])]

    comparison = Comparison(
        "index, build in a file",
        f"Flat, {isotropic}",
        bytes=2.0 * isotropic.rows.nbytes,
        items={"descriptors": isotropic.count},
    )
    contenders = {"HAMLET Index": lambda: ours, "faiss alone": lambda: bare}
    right = torch.from_numpy(isotropic.nearest(1)[:1])
    judged(_compared(benchmark, comparison, contenders, lambda: [right], effort))


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_index_open(mapped, isotropic, flat, judged, benchmark, effort):
    """HAMLET verifies the checksums of all that it reads."""

    def ours():
        return [torch.tensor([float(len(Index.load(flat, memory_map=mapped)))])]

    def bare():
        return [torch.tensor([float(faiss.read_index(str(flat), faiss.IO_FLAG_MMAP if mapped else 0).ntotal)])]

    title = f"Flat, {isotropic}, {'mapped' if mapped else 'read'}"
    comparison = Comparison("index, open", title, bytes=0.0 if mapped else float(flat.stat().st_size))
    contenders = {"HAMLET Index": lambda: ours, "faiss alone": lambda: bare}
    right = [torch.tensor([isotropic.count], dtype=torch.float64)]
    yardsticks = {} if mapped else {COPY: copy_of(comparison.bytes)}
    judged(compare(benchmark, comparison, contenders, lambda: right, effort=effort, tolerance=0, yardsticks=yardsticks))


def test_index_search(isotropic, flat, judged, benchmark, effort):
    bare = faiss.read_index(str(flat))
    base, asked = torch.from_numpy(isotropic.rows), torch.from_numpy(isotropic.asked)
    k = min(NEAREST, isotropic.count)
    right = isotropic.nearest(k)

    def by_index(index):
        return lambda: index.search(isotropic.asked, k)

    def by_torch():
        return (asked @ base.T).topk(k)

    def by_numpy():
        scores = isotropic.asked @ isotropic.rows.T
        places = np.argpartition(scores, -k, axis=1)[:, -k:]
        found = np.take_along_axis(scores, places, 1)
        order = np.argsort(-found, axis=1)
        return np.take_along_axis(found, order, 1), np.take_along_axis(places, order, 1)

    def answering(search):
        """Made only of a search that finds the right neighbours; what is timed gives their scores."""

        def make():
            isotropic.check(search()[1], right)
            return lambda: [torch.as_tensor(search()[0])]

        return make

    contenders = {
        "HAMLET Index": answering(by_index(Index.load(flat))),
        "HAMLET Index, mapped": answering(by_index(Index.load(flat, memory_map=True))),
        "faiss alone": answering(by_index(bare)),
        "torch product and topk": answering(by_torch),
        "NumPy product and argpartition": answering(by_numpy),
    }
    comparison = _search(f"index, search for {k}", isotropic, None)
    judged(_compared(benchmark, comparison, contenders, lambda: [torch.from_numpy(right)], effort))


@pytest.mark.parametrize("clusters", ["isotropic", "clustered"])
@pytest.mark.parametrize("name", FACTORIES)
def test_approximate_index(name, clusters, full, isotropic, clustered, tmp_path, judged, benchmark, effort):
    """Built once; faiss alone searches HAMLET's own file."""
    collection = {"isotropic": isotropic, "clustered": clustered}[clusters]
    lists = 2 ** round(math.log2(4 * math.sqrt(collection.count))) if full else 4
    factory = (FACTORIES if full else SMALL_FACTORIES)[name].format(lists)
    path, k, ids = tmp_path / "approximate.index", min(NEAREST, collection.count), collection.ids
    built = seconds(lambda: Index.build_file(path, collection.rows, ids, factory))
    index, bare = Index.load(path), faiss.read_index(str(path))
    found = check_recall(index, collection.rows, ids, collection.queries).recall
    recall = " / ".join(f"{found[at]:.3f}" for at in found)
    comparison = Comparison(
        f"index, approximate search for {k}",
        f"{factory}, {collection.queries} queries of {collection}",
        note=f"Built in {built:.1f} s, {path.stat().st_size / 2**20:.0f} MiB; "
        f"recall@{'/'.join(map(str, found))} {recall}.",
        operations=search_operations(bare, collection.asked, k),
        bytes=float(bare.ntotal * faiss.extract_index_ivf(bare).code_size),
        items={"queries": collection.queries},
    )

    def answering(searched):
        return lambda: lambda: [torch.from_numpy(searched.search(collection.asked, k)[0])]

    contenders = {
        "HAMLET Index": answering(index),
        "HAMLET Index, mapped": answering(Index.load(path, memory_map=True)),
        "faiss alone": answering(bare),
    }
    right = torch.from_numpy(bare.search(collection.asked, k)[0]).double()
    judged(_compared(benchmark, comparison, contenders, lambda: [right], effort))

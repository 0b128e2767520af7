"""Time and memory of an index at scale: ``python bench/index_scale.py FACTORY [--clusters 10000] [--count 1000000]``.

Builds an index file from a memory-mapped array of random descriptors, then opens and searches it whole and
memory-mapped, and prints one line of JSON. Every phase runs in a process of its own, so that each peak of memory is its
own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from numpy.typing import NDArray

from hamlet.retrieval import Index
from hamlet.retrieval.faiss_index import blocks

K = 100


def directions(random: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = random.standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Clouds:
    """Unit vectors: isotropic, or around random centres, at a cosine of 0.8 to them."""

    def __init__(self, dim: int, clusters: int) -> None:
        self.dim = dim
        self.centres = directions(np.random.default_rng(0), clusters, dim) if clusters else None

    def draw(self, seed: int, count: int) -> NDArray[np.float32]:
        random = np.random.default_rng(seed)
        rows = directions(random, count, self.dim)
        if self.centres is None:
            return rows
        chosen = self.centres[random.integers(len(self.centres), size=count)]
        rows = 0.8 * chosen + 0.6 * rows
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_descriptors(path: Path, clouds: Clouds, count: int) -> None:
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, clouds.dim))
    for seed, start in enumerate(range(0, count, 50_000), start=1):
        block = clouds.draw(seed, min(50_000, count - start))
        out[start : start + len(block)] = block


@contextmanager
def timed(times: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = round(time.perf_counter() - start, 3)


def memory() -> dict[str, int]:
    """MiB of this process now, what it holds of its own and of files, and at its peak."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    keys = {"own": "RssAnon", "files": "RssFile", "peak": "VmHWM"}
    return {name: int(status[key].split()[0]) // 1024 for name, key in keys.items()}


def build(path: Path, descriptors: Path, factory: str) -> dict[str, Any]:
    times: dict[str, Any] = {}
    array = np.load(descriptors, mmap_mode="r")
    ids = [f"photos/{row:09d}.jpg" for row in range(len(array))]
    times["before_mib"] = memory()
    with timed(times, "build_s"):
        Index.build_file(path, array, ids, factory)
    return {**times, "build_mib": memory(), "file_mib": path.stat().st_size >> 20}


def search(path: Path, queries: NDArray[np.float32], exact: NDArray[np.int64] | None, memory_map: bool) -> Any:
    times: dict[str, Any] = {"before_mib": memory()}
    with timed(times, "open_s"):
        index = Index.load(path, memory_map=memory_map)
    times["open_mib"] = memory()
    with timed(times, "first_query_s"):
        index.search(queries[:1], K)
    with timed(times, "seconds"):
        _, found = index.search(queries, K)
    times["queries_per_second"] = round(len(queries) / times.pop("seconds"), 1)
    if exact is not None:
        rows = [[int(name[7:16]) for name in each] for each in found]
        times["recall"] = {k: round(recall(rows, exact, k), 4) for k in (1, 10, 100)}
    return {**times, "search_mib": memory()}


def recall(found: list[list[int]], exact: NDArray[np.int64], k: int) -> float:
    """Of the k nearest, the share that is among the first k found."""
    return float(
        np.mean([len(set(row[:k]) & set(true[:k].tolist())) / k for row, true in zip(found, exact, strict=True)])
    )


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("factory")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--clusters", type=int, default=0, help="0: isotropic")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "hamlet-index-scale"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    clouds = Clouds(options.dim, options.clusters)
    name = f"{options.count}x{options.dim}-{options.clusters}"
    descriptors = options.folder / f"{name}.npy"
    exact_file = options.folder / f"{name}-{options.queries}-exact.npy"
    queries = clouds.draw(10**6, options.queries)
    if not exact_file.exists():
        write_descriptors(descriptors, clouds, options.count)
        rows = blocks(np.load(descriptors, mmap_mode="r"))
        np.save(exact_file, knn_ground_truth(queries, rows, K, faiss.METRIC_INNER_PRODUCT)[1])
    exact = np.load(exact_file)
    path = options.folder / "scale.index"
    result: dict[str, Any] = {"data": name, "factory": options.factory, "threads": faiss.omp_get_max_threads()}
    result["build"] = apart(build, path, descriptors, options.factory)
    result["read"] = apart(search, path, queries, exact, False)
    result["memory_mapped"] = apart(search, path, queries, exact, True)
    path.unlink()
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What the steps between descriptors and scores take at a million descriptors: ``python -m bench.descriptors``.

Memory is what the process itself allocates (``RssAnon`` of Linux), at its highest less what it was before: pages of
mapped files, which the system drops when it needs them, do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from hamlet.retrieval.evaluate import best
from hamlet.retrieval.expansion import expand_queries
from hamlet.retrieval.metrics import revisited
from hamlet.retrieval.neighbours import blocks, inner_products, normalise, scratch
from hamlet.retrieval.whitening import fit_pca

QUERIES, BLOCK = 70, 33


def allocated() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    before, start, over = allocated(), time.perf_counter(), threading.Event()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    over.set()
    watcher.join()
    found["seconds"], found["bytes"] = time.perf_counter() - start, peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    arguments = parser.parse_args()
    rows, generator = arguments.rows, np.random.default_rng(0)
    table = Table(box=box.SIMPLE_HEAD, title=f"{rows:,} x {arguments.dim} {arguments.dtype}", title_justify="left")
    for heading in ("", "seconds", "MiB allocated"):
        table.add_column(heading)
    with tempfile.TemporaryDirectory() as folder:
        database = scratch((rows, arguments.dim), folder, arguments.dtype)
        for block in blocks(rows):
            part = database[block]
            database[block] = normalise(generator.standard_normal(part.shape, dtype=np.float32))
        queries = np.array(database[:QUERIES])

        def step(name: str, run: Callable[[], object]) -> object:
            found: dict[str, float] = {}
            with watched(found):
                result = run()
            table.add_row(name, f"{found['seconds']:.1f}", f"{found['bytes'] / 2**20:.0f}")
            return result

        def rank() -> None:
            for start in range(0, QUERIES, BLOCK):
                scores = inner_products(queries[start : start + BLOCK], database)
                ranks = np.stack([best(row) for row in scores]).T
                gnd = [
                    {"easy": [start + column], "hard": [rows - 1], "junk": [rows - 2]} for column in range(len(scores))
                ]
                revisited(ranks, gnd)

        whitening = fit_pca(database[:1000])
        step("learn PCA whitening", lambda: fit_pca(database))
        step("whiten into a mapped file", lambda: whitening(database, scratch((rows, arguments.dim), folder)))
        step(f"alpha-qe of {QUERIES} queries", lambda: expand_queries(queries, database))
        step(f"rank {QUERIES} queries by blocks of {BLOCK}, and score", rank)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

"""Commands in two processes that the real ``torchrun`` starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hamlet.retrieval import Index
from tests.evaluate.benchmarks import NAMES, SIDE, write_revisited
from tests.torchrun import torchrun


def test_the_processes_share_the_images_and_the_first_alone_prints_and_writes(
    evaluate: Callable[..., dict[str, Any]], checkpoint: Path, tmp_path: Path
) -> None:
    write_revisited(tmp_path)
    measured = evaluate("roxford5k", tmp_path)
    (tmp_path / "out").rename(tmp_path / "alone")
    line = ("evaluate", "roxford5k", "--data", tmp_path, "--model", checkpoint, "--longest-side", SIDE, "--json")
    index = tmp_path / "a.index"
    done = torchrun(
        (1, line),
        (0, (*line, "--out", tmp_path / "out")),
        (0, ("index", checkpoint, tmp_path / "roxford5k" / "jpg", "--out", index, "--longest-side", SIDE)),
        (1, ("search", index, tmp_path / "roxford5k" / "jpg" / "query_000000.jpg")),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: out: got None, expected a folder that all 2 processes reach") == 2
    assert done.stderr.count("error: processes: got 2, expected one, as a search is not shared") == 2
    shared, end = json.JSONDecoder().raw_decode(done.stdout)
    assert shared["metrics"] == measured["metrics"]
    assert done.stdout[end:] == f"\n{index}: 14 images, 0 left out\n"
    descriptors = Path("roxford5k-database", "descriptors.npy")
    assert (tmp_path / "out" / descriptors).read_bytes() == (tmp_path / "alone" / descriptors).read_bytes()
    assert Index.load(index).ids == [*(f"{name}.jpg" for name in NAMES), "query_000000.jpg", "query_000001.jpg"]
    assert not list(tmp_path.glob("a.index.extraction"))

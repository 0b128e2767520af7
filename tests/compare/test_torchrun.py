"""A comparison in two processes that the real ``torchrun`` starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hamlet.cli import app
from tests.compare.test_compare import SHORT, SMALL
from tests.torchrun import torchrun


def test_all_train_and_the_first_alone_measures_prints_and_writes(
    photos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    line = ("compare", "folder", f"data.root={photos}", *SHORT, "--models", "gem,rmac", "--backbones", *SMALL)
    line += ("--dataset", "folder", "--data", str(photos), "--longest-side", "64", "--out", str(out))
    done = torchrun((0, (*line, "--json")))
    assert done.returncode == 0, done.stderr
    results, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end:] == "\n"
    assert list(results["models"]) == ["gem_mobilenetv3_small", "rmac_mobilenetv3_small"]
    assert results == json.loads((out / "comparison.json").read_text())
    for name in results["models"]:
        folder = out / name / "seed-0"
        assert {path.name for path in folder.glob("*.json*")} == {"history.jsonl", "result.json", "timing.jsonl"}

    def train(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("hamlet.compare.run.train", train)
    alone = CliRunner().invoke(app, [*line, "--json"])
    assert alone.exit_code == 0, alone.output
    for name, model in json.loads(alone.stdout)["models"].items():
        assert model["runs"] == results["models"][name]["runs"]

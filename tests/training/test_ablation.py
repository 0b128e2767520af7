"""The ablation: what it trains, keeps, refuses and tells."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.environment import machine, version
from hamlet.training import Recipe, load_recipe
from hamlet.training.ablation import VARIANTS, ablate
from hamlet.training.ablation_report import Row, table
from tests.training.test_data import picture
from tests.training.test_sets import SHORT

NAMES = ("HAMLET", "no ACSA", "no curriculum")


def settings(photos: Path, *more: str) -> list[str]:
    plain = [each for each in SHORT if not each.startswith("steps")]
    model = ["model.name=hamlet_mobilenetv3_small", "model.descriptor_dim=8"]
    return [*plain, *model, "steps=2", f"data.root={photos}", f"data.validation={photos}", *more]


def recipe(photos: Path, *more: str) -> Recipe:
    return load_recipe("folder", settings(photos, *more))


def test_each_variant_is_trained_once_and_told_of(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    rows = ablate(recipe(photos), out, seeds=(0, 1), variants=NAMES, progress=False)
    recipes = {path.parent.name: load_recipe(path) for path in out.glob("*/recipe.yaml")}
    assert len(recipes) == 6
    assert recipes["no-acsa-1"].model.options == {"acsa": False}
    assert recipes["no-curriculum-0"].curriculum.difficulty == "none"
    assert recipes["hamlet-1"].seed == 1

    # A run that is done does not need its weights, one that lost its score is done again.
    (out / "no-acsa-0" / "model.pt").unlink()
    (out / "hamlet-0" / "score.json").unlink()
    assert ablate(recipe(photos), out, seeds=(0, 1), variants=NAMES, progress=False) == rows
    assert not (out / "no-acsa-0" / "model.pt").exists()
    assert not list(out.glob("*/checkpoint.pt"))

    scores = {path.parent.name: json.loads(path.read_text())["map"] for path in out.glob("*/score.json")}
    told = json.loads((out / "results.json").read_text())
    assert told["seeds"] == [0, 1]
    assert (told["version"], told["machine"]) == (version(), machine())
    assert [entry["variant"] for entry in told["variants"]] == list(NAMES)
    for entry, name in zip(told["variants"], ("hamlet", "no-acsa", "no-curriculum"), strict=True):
        found = [scores[f"{name}-{seed}"] for seed in (0, 1)]
        apart = [scores[f"{name}-{seed}"] - scores[f"hamlet-{seed}"] for seed in (0, 1)]
        for numbers, expected in ((entry, found), (entry["difference"], apart)):
            assert numbers["map"] == pytest.approx(expected)
            assert (numbers["mean"], numbers["deviation"]) == pytest.approx((mean(expected), stdev(expected)))
    assert "| no ACSA |" in (out / "table.md").read_text()
    with Image.open(out / "table.png") as drawn:
        assert drawn.width > 500


def test_a_score_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    def again(*more: str) -> Any:
        return ablate(recipe(photos, *more), tmp_path / "out", seeds=(0,), variants=("HAMLET",), progress=False)

    again()
    with pytest.raises(ValueError, match=r"score\.json is of a run with optimizer\.lr=0\.0005 \(now 0\.1\)"):
        again("optimizer.lr=0.1")
    with pytest.raises(ValueError, match=r"with model\.heads=\d+ \(now 1\)|model\.options"):
        again("model.options={heads: 1}")
    picture(photos / "dark" / "0.png", 90, size=(80, 70))
    with pytest.raises(ValueError, match="is of a run with held out="):
        again()
    (tmp_path / "out" / "hamlet-0" / "score.json").write_text('{"map": 0.123}')
    with pytest.raises(ValueError, match=r"score\.json holds no score of an ablation"):
        again()


def test_what_cannot_be_ablated_is_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(VARIANTS) == 7
    chosen = recipe(photos)
    for variants, message in (
        (tuple(VARIANTS), "no MKDM changes nothing"),
        (("no ACSA",), "variants: got no ACSA, expected HAMLET first"),
        (("HAMLET", "no TLC"), "variants: got no TLC, expected some of"),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(chosen, tmp_path / "out", variants=variants, progress=False)
    with pytest.raises(ValueError, match="seeds: got"):
        ablate(chosen, tmp_path / "out", seeds=(1, 1), progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = CliRunner().invoke(app, ["ablate", "folder", *settings(photos), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 1
    assert "processes: got 2, expected one" in shown.stderr
    assert not (tmp_path / "out").exists()


def test_the_documentation_has_the_table_of_the_committed_run() -> None:
    docs = Path(__file__).parents[2] / "docs"
    variants = json.loads((docs / "ablation-results.json").read_text())["variants"]
    rows = [Row(variant["variant"], tuple(variant["map"])) for variant in variants]
    assert [row.variant for row in rows] == list(VARIANTS)
    assert {len(row.maps) for row in rows} == {3}
    assert table(rows) in (docs / "training.md").read_text()

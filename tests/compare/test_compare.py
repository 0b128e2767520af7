from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.compare import compare, comparison_recipes
from hamlet.compare.report import comparison_columns, comparison_rows
from hamlet.models import Model, load_checkpoint
from hamlet.models.registry import FAMILIES

SHORT = ("steps=2", "batch_size=4", "image_size=64", "optimizer.warmup=1", "data.workers=0", "data.samples_per_class=0")
SMALL = ["mobilenetv3_small"]


class Toy:
    """Four samples of noise; the 'accuracy' is a number that the weights decide."""

    description = "Noise."
    cost_size = 64
    main_setups = ("hard",)
    teacher = None
    test = "noise"

    class Noise:
        labels = (0, 0, 1, 1)

        def __len__(self) -> int:
            return 4

        def __getitem__(self, key: tuple[int, int]) -> Tensor:
            return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(key[1]))

    def __init__(self) -> None:
        self.training = self.Noise()
        self.measured: list[str] = []
        self.fails_at: int | None = None

    def measure(self, model: Model, out: Path) -> dict[str, dict[str, float]]:
        if len(self.measured) == self.fails_at:
            raise KeyboardInterrupt
        self.measured.append(model.name)
        value = float(sum(p.abs().mean() for p in model.parameters()).detach()) % 1
        return {"easy": {"map": 1.0, "p@1": value}, "hard": {"map": value, "p@1": 0.25}}


def recipes(*overrides: str, models: tuple[str, ...] = ("hamlet", "gem", "spca"), seeds: int = 2) -> Any:
    return comparison_recipes("folder", [*SHORT, *overrides], models=models, backbones=SMALL, seeds=seeds)


@pytest.mark.parametrize("recipe", ["demo", "folder", "landmarks"])
def test_all_methods_differ_from_the_recipe_in_what_is_their_own_alone(recipe: str) -> None:
    found = comparison_recipes(recipe, models=list(FAMILIES), backbones=["resnet18", "mobilenetv3_large"], seeds=3)
    assert len({(each.model.name, each.seed) for each in found}) == len(found) == len(FAMILIES) * 2 * 3
    first = found[0]
    for each in found:
        same = ("steps", "batch_size", "image_size", "augment", "optimizer", "curriculum", "data", "precision")
        assert all(getattr(each, name) == getattr(first, name) for name in same)
        if each.model.name.startswith("spca"):
            assert each.loss.scale == 32
            assert each.loss.margin == pytest.approx(0.15 * 180 / torch.pi, abs=1e-3)
        else:
            assert (each.loss.scale, each.loss.margin) == (first.loss.scale, first.loss.margin)
        if not each.model.name.startswith("hamlet"):
            seen = [(stage.until, stage.image_size, stage.samples_per_class) for stage in each.stages]
            assert seen == [(stage.until, stage.image_size, stage.samples_per_class) for stage in first.stages]
            for stage in each.stages:
                assert stage.distillation == stage.consistency == stage.hierarchy == stage.coarse == stage.budget == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"models": ["dscf"]}, NotImplementedError, "no definition of DSCF is public"),
        ({"models": ["gme"]}, ValueError, "models: got 'gme', expected some of hamlet, gem"),
        ({"models": ["gem", "gem"]}, ValueError, "models: got .*each once"),
        ({"models": []}, ValueError, "models: got"),
        ({"backbones": ["resnet19"]}, ValueError, "name: got 'hamlet_resnet19'"),
        ({"seeds": 0}, ValueError, "seeds: got 0"),
    ],
)
def test_refuses_what_cannot_be_compared(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        comparison_recipes("folder", **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(Toy(), recipes(), out, progress=False)


def test_tells_of_every_model_and_seed(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert json.loads((out / "comparison.json").read_text()) == results
    assert list(results["models"]) == [f"{name}_mobilenetv3_small" for name in ("hamlet", "gem", "spca")]
    assert comparison_columns(results)[:5] == ("model", "easy mAP", "easy P@1", "hard mAP", "hard P@1")
    rows = {row[0]: row for row in comparison_rows(results)}
    for name, runs in results["models"].items():
        assert [run["seed"] for run in runs] == [0, 1]
        values = [100 * run["metrics"]["hard"]["map"] for run in runs]
        assert values[0] != values[1]
        assert rows[name][3] == f"{mean(values):.1f} ± {stdev(values):.1f}"
        model, _ = load_checkpoint(out / name / "seed-1" / "model.pt")
        parameters = sum(p.numel() for p in model.parameters())
        assert rows[name][5] == f"{parameters / 1e6:.2f}"
        assert not (out / name / "seed-1" / "checkpoint.pt").exists()
    page = (out / "comparison.html").read_text()
    assert all(name in page for name in results["models"])
    assert "no definition of DSCF is public" in page
    assert "data:image/png;base64," in page
    with Image.open(out / "comparison.png") as picture:
        assert min(picture.size) > 300


def test_a_stopped_comparison_goes_on_and_does_nothing_twice(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    task = Toy()
    task.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        compare(task, recipes(), tmp_path, progress=False)
    assert len(task.measured) == 3
    task.fails_at = None
    again = compare(task, recipes(), tmp_path, progress=False)
    assert len(task.measured) == 6
    for name, runs in finished[1]["models"].items():
        assert [run["metrics"] for run in again["models"][name]] == [run["metrics"] for run in runs]
    compare(task, recipes("checkpoint_every=7"), tmp_path, progress=False)
    assert len(task.measured) == 6
    with pytest.raises(ValueError, match=r"steps=2 \(now 3\)"):
        compare(task, recipes("steps=3"), tmp_path, progress=False)
    task.test = "other noise"
    with pytest.raises(ValueError, match=r"test='noise' \(now 'other noise'\)"):
        compare(task, recipes(), tmp_path, progress=False)


def test_command_compares_on_a_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("warm", "cold")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for other in range(3):
            Image.new("RGB", (72, 64), (80 * number + 20, 60 * other, 90)).save(
                tmp_path / "photos" / name / f"{other}.png"
            )
    photos = tmp_path / "photos"
    line = ["compare", "folder", f"data.root={photos}", *SHORT, "--models", "gem,rmac", "--backbones", *SMALL]
    missing = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out")])
    assert missing.exit_code == 1
    assert "dataset: missing" in missing.stderr
    line += ["--dataset", "folder", "--data", str(photos), "--longest-side", "64", "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert "mAP" in shown.stdout
    # A narrow terminal folds the name.
    assert "rmac" in shown.stdout
    assert "dscf: not available" in shown.stdout
    assert json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)["image_size"] == 64


def test_few_steps_keep_the_share_of_the_warm_up() -> None:
    (few,) = comparison_recipes("demo", ["steps=20"], models=["gem"])
    assert (few.steps, few.optimizer.warmup) == (20, 1)
    (own,) = comparison_recipes("demo", ["steps=20", "optimizer.warmup=7"], models=["gem"])
    assert own.optimizer.warmup == 7

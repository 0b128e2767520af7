from __future__ import annotations

import html
import json
import os
import signal
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import hamlet
from hamlet.cli import app
from hamlet.compare import Run, compare, comparison_runs
from hamlet.compare.cost import measure_costs
from hamlet.compare.plan import CONTROLS
from hamlet.compare.report import comparison_columns, comparison_rows
from hamlet.models import UNAVAILABLE, Model, load_checkpoint
from hamlet.models.registry import FAMILIES
from hamlet.retrieval.shards import alone_in

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


METHODS = ("hamlet", "gem", "spca", "gem_centred")


def runs(*overrides: str) -> list[Run]:
    return comparison_runs("folder", [*SHORT, *overrides], methods=METHODS, backbones=SMALL, seeds=2)


@pytest.mark.parametrize("recipe", ["demo", "folder", "landmarks"])
def test_all_methods_differ_from_the_recipe_in_what_is_their_own_alone(recipe: str) -> None:
    found = comparison_runs(recipe, backbones=["resnet18", "mobilenetv3_large"], seeds=3)
    assert len({(each.name, each.recipe.seed) for each in found}) == len(found) == (len(FAMILIES) + len(CONTROLS)) * 6
    first = found[0].recipe
    for run in found:
        each = run.recipe
        assert each.model.name == f"{CONTROLS.get(run.method, run.method)}_{run.backbone}"
        same = ("steps", "batch_size", "image_size", "augment", "optimizer", "curriculum", "data", "precision")
        assert all(getattr(each, name) == getattr(first, name) for name in same)
        if run.method == "spca":
            assert (each.loss.classifier, each.loss.scale) == ("arcface", 32)
            assert each.loss.margin == pytest.approx(0.15 * 180 / torch.pi, abs=1e-3)
        else:
            names = ("classifier", "scale", "margin")
            assert all(getattr(each.loss, name) == getattr(first.loss, name) for name in names)
        if run.method.startswith("hamlet"):
            assert each.model.options == first.model.options
        else:
            assert each.model.options == ({"centre": True} if run.method == "gem_centred" else {})
        if run.method != "hamlet":
            seen = [(stage.until, stage.image_size, stage.samples_per_class) for stage in each.stages]
            assert seen == [(stage.until, stage.image_size, stage.samples_per_class) for stage in first.stages]
            for stage in each.stages:
                assert stage.distillation == stage.consistency == stage.hierarchy == stage.coarse == stage.budget == 0


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"methods": ["dscf"]}, NotImplementedError, "no definition of DSCF is public"),
        ({"methods": ["gme"]}, ValueError, "models: got 'gme', expected some of hamlet, gem"),
        ({"methods": ["gme"]}, ValueError, r"not available: dscf \(no definition of DSCF is public"),
        ({"methods": ["gem", "gem"]}, ValueError, "models: got .*each once"),
        ({"methods": []}, ValueError, "models: got"),
        ({"backbones": ["mobilenetv3_large", "mobilenetv3_large_100"]}, ValueError, "backbones: got .*each once"),
        ({"backbones": ["resnet19"]}, ValueError, "name: got 'hamlet_resnet19'"),
        ({"seeds": 0}, ValueError, "seeds: got 0"),
        (
            {"overrides": ["stages=[{classification: 0, distillation: 1}]"], "methods": ["hamlet", "gem"]},
            ValueError,
            r"stages\[0\].classification: got 0, expected more than 0, as gem has no other loss",
        ),
    ],
)
def test_refuses_what_cannot_be_compared(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        comparison_runs("folder", **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(Toy(), runs(), out, progress=False)


def test_tells_of_every_model_and_seed(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert json.loads((out / "comparison.json").read_text()) == results
    assert list(results["models"]) == [f"{name}_mobilenetv3_small" for name in METHODS]
    assert comparison_columns(results)[:5] == ("model", "easy mAP", "easy P@1", "hard mAP", "hard P@1")
    rows = {row[0]: row for row in comparison_rows(results)}
    for name, row in results["models"].items():
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        values = [100 * run["metrics"]["hard"]["map"] for run in row["runs"]]
        assert values[0] != values[1]
        assert rows[name][3] == f"{mean(values):.1f} ± {stdev(values):.1f}"
        model, _ = load_checkpoint(out / name / "seed-1" / "model.pt")
        parameters = sum(p.numel() for p in model.parameters())
        assert rows[name][5] == f"{parameters / 1e6:.2f}"
        assert 0 < row["cost"]["latency_ms"] <= row["cost"]["latency_p90_ms"]
        assert row["cost"]["peak_memory_bytes"] > 0
        assert not (out / name / "seed-1" / "checkpoint.pt").exists()
    assert f"{torch.get_num_threads()} threads" in results["machine"]
    page = html.unescape((out / "comparison.html").read_text())
    assert results["version"].startswith(f"hamlet {hamlet.__version__}")
    for words in (results["machine"], results["version"], *results["models"], "no definition of DSCF is public"):
        assert words in page
    with Image.open(out / "comparison.png") as picture:
        assert picture.format == "PNG"


def test_a_stopped_comparison_goes_on_and_does_nothing_twice(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    task = Toy()
    task.fails_at = 3
    with pytest.raises(KeyboardInterrupt):
        compare(task, runs(), tmp_path, progress=False)
    assert len(task.measured) == 3
    task.fails_at = None
    again = compare(task, runs(), tmp_path, progress=False)
    assert len(task.measured) == 8
    for name, row in finished[1]["models"].items():
        assert again["models"][name]["runs"] == row["runs"]
    # A run that was killed between its result and the end of it.
    left = tmp_path / "gem_mobilenetv3_small" / "seed-0" / "checkpoint.pt"
    left.touch()
    compare(task, runs("checkpoint_every=7"), tmp_path, progress=False)
    assert len(task.measured) == 8
    assert not left.exists()
    with pytest.raises(ValueError, match=r"steps=2 \(now 3\)"):
        compare(task, runs("steps=3"), tmp_path, progress=False)
    task.test = "other noise"
    with pytest.raises(ValueError, match=r"test='noise' \(now 'other noise'\)"):
        compare(task, runs(), tmp_path, progress=False)


def test_two_processes_do_not_work_at_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "hamlet_mobilenetv3_small" / "seed-0"
    held, holds = os.pipe()
    child = os.fork()
    if not child:
        with alone_in(folder):
            os.write(holds, b"1")
            signal.pause()
    try:
        os.read(held, 1)
        task = Toy()
        with pytest.raises(ValueError, match="seed-0: another process is at work in it"):
            compare(task, runs(), tmp_path, progress=False)
        assert not task.measured
        assert [path.name for path in folder.iterdir()] == ["lock"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_models_are_timed_in_turns() -> None:
    passes: list[str] = []

    class Named(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            passes.append(self.name)
            return images.mean((2, 3)) * self.weight

    costs = measure_costs({name: Named(name) for name in "abc"}, 8)
    assert {name: cost.parameters for name, cost in costs.items()} == {"a": 3, "b": 3, "c": 3}
    # Each has a pass that is not timed before the one that is.
    assert "".join(passes).endswith("aabbcc" * 5)


def test_command_compares_on_a_folder(photos: Path, tmp_path: Path) -> None:
    line = ["compare", "folder", f"data.root={photos}", *SHORT, "--models", "rmac", "--backbones", *SMALL]
    line += ["--seeds", "2"]
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
    found = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert (found["image_size"], found["seeds"]) == (64, [0, 1])
    assert list(found["models"]) == ["rmac_mobilenetv3_small"]
    assert [run["seed"] for run in found["models"]["rmac_mobilenetv3_small"]["runs"]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--models", "gem,dscf"), f"dscf: not available: {UNAVAILABLE['dscf']}"),
        (("demo", "--longest-side", "64"), "the recipe demo brings its own test"),
        (("demo", "--dataset", "roxford5k"), "the recipe demo brings its own test"),
    ],
)
def test_command_refuses_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hamlet: error: ")
    assert message in line


def test_help_says_why_a_method_is_missing() -> None:
    shown = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "300"}).stdout
    for method, reason in UNAVAILABLE.items():
        assert f"{method} ({reason})" in " ".join(shown.split())


def test_few_steps_keep_the_share_of_the_warm_up() -> None:
    (few,) = comparison_runs("demo", ["steps=20"], methods=["gem"])
    assert (few.recipe.steps, few.recipe.optimizer.warmup) == (20, 1)
    (own,) = comparison_runs("demo", ["steps=20", "optimizer.warmup=7"], methods=["gem"])
    assert own.recipe.optimizer.warmup == 7

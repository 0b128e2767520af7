from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, Instance, instances
from hamlet.demo.evaluation import POSITIVES, QUERIES, View, describe, rank, render_test
from hamlet.demo.run import demo_recipes, run_demo
from hamlet.models import load_checkpoint
from hamlet.retrieval import Index
from hamlet.retrieval.metrics import labelled
from hamlet.training.losses import TERMS

STEPS = 3


@pytest.fixture(scope="module")
def small() -> Any:
    """Seven instances of each photograph: the whole demo in seconds."""

    def few(names: list[str]) -> list[Instance]:
        return [instance for name in names for instance in instances([name])[:7]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hamlet.demo.task.instances", few)
        yield few


@pytest.fixture(scope="module")
def finished(small: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, steps=STEPS, seed=3, progress=False)


def test_run_writes_its_files(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    for name in ("hamlet_resnet18", "gem_resnet18"):
        folder = out / name / "seed-3"
        assert len((folder / "history.jsonl").read_text().splitlines()) == STEPS
        model, _ = load_checkpoint(folder / "model.pt")
        assert model.name == name
        assert len(Index.load(folder / "test.index")) == results["test"]["database"]
        assert not (folder / "checkpoint.pt").exists()


def test_results_are_those_of_the_models_on_disk(finished: tuple[Path, dict[str, Any]], small: Any) -> None:
    out, results = finished
    recipe = demo_recipes(STEPS, 3)["HAMLET"]
    queries, database = render_test(small(list(TEST_PHOTOGRAPHS)), recipe.augment, recipe.image_size, 3)
    for name in ("HAMLET", "GeM"):
        model, _ = load_checkpoint(out / f"{name.lower()}_resnet18" / "seed-3" / "model.pt")
        found, asked = describe(model, database), describe(model, queries)
        # The ranking without an index: a full sort of all inner products.
        order = np.argsort(-(found @ asked.T), axis=0, kind="stable")
        expected = labelled(order, [view.label for view in database], [view.label for view in queries])
        assert results["models"][name]["metrics"] == pytest.approx(expected, abs=1e-3)
        assert results["models"][name]["cost"]["parameters"] == sum(p.numel() for p in model.parameters())
        assert results["models"][name]["cost"]["flops"] > 1e7


def test_report_shows_queries_maps_and_curves(finished: tuple[Path, dict[str, Any]]) -> None:
    out, results = finished
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.count('<figure class="picture correct"') + page.count('<figure class="picture wrong"') > 100
    assert page.count(">radius<") == page.count(">pooling<") > 50
    assert "not a multimodal model" in page
    for model in results["models"].values():
        assert f"{100 * model['metrics']['map']:.1f}" in page


def test_the_command_again_trains_nothing_and_prints_its_table(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished

    def train_step(*arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("hamlet.training.engine.Engine.train_step", train_step)
    (out / "results.json").unlink()
    shown = CliRunner().invoke(app, ["demo", "--steps", str(STEPS), "--seed", "3", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    again = json.loads((out / "results.json").read_text())
    for name, model in results["models"].items():
        assert again["models"][name]["metrics"] == model["metrics"]
        assert f"{100 * model['metrics']['map']:.1f}" in shown.stdout
    assert "report.html" in shown.stdout
    assert "training" in shown.stderr
    assert "training" not in shown.stdout


def test_other_steps_are_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"steps=3 \(now 4\)"):
        run_demo(finished[0], steps=STEPS + 1, seed=3, progress=False)


def test_a_stopped_run_goes_on(
    finished: tuple[Path, dict[str, Any]], small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hamlet.compare.run as module

    train = module.train

    def stop_in_the_baseline(model: Any, recipe: Any, *arguments: Any, **settings: Any) -> Any:
        if model.name.startswith("gem"):
            train(model, recipe, *arguments, **settings, stop_after=1)
            raise KeyboardInterrupt
        return train(model, recipe, *arguments, **settings)

    monkeypatch.setattr(module, "train", stop_in_the_baseline)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, steps=STEPS, seed=3, progress=False)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(module, "train", train)
    results = run_demo(tmp_path, steps=STEPS, seed=3, progress=False)
    for name, model in finished[1]["models"].items():
        assert results["models"][name]["metrics"] == model["metrics"]


def test_both_models_train_on_the_same_views_for_the_same_steps() -> None:
    recipes = demo_recipes(40, 7)
    hamlet, gem = recipes["HAMLET"], recipes["GeM"]
    assert hamlet.steps == gem.steps == 40
    assert hamlet.optimizer.warmup == gem.optimizer.warmup < 40
    same = ("seed", "batch_size", "image_size", "augment", "curriculum", "data", "loss", "precision")
    assert all(getattr(hamlet, name) == getattr(gem, name) for name in same)
    # The order of the samples may not depend on the model.
    assert hamlet.curriculum.difficulty in {"none", "teacher"}
    assert hamlet.model.name.removeprefix("hamlet_") == gem.model.name.removeprefix("gem_")
    assert hamlet.model.descriptor_dim == gem.model.descriptor_dim
    for stage in gem.stages:
        assert [name for name in TERMS if getattr(stage, name)] == ["classification"]
    for name in TERMS:
        assert any(getattr(stage, name) > 0 for stage in hamlet.stages)


def test_test_views_are_of_test_photographs_alone_and_enough() -> None:
    crops = instances(list(TEST_PHOTOGRAPHS))
    recipe = demo_recipes()["HAMLET"]
    queries, database = render_test(crops[:10], recipe.augment, 32, 0)
    assert (len(queries), len(database)) == (8 * QUERIES, 10 * POSITIVES)
    assert {view.label for view in database} - {view.label for view in queries} == {4, 9}
    assert not {name.split("-")[0] for name in TRAIN_PHOTOGRAPHS} & {view.name.split("-")[0] for view in database}
    assert len({view.name for view in [*queries, *database]}) == len(queries) + len(database)
    pictures = {view.image.numpy().tobytes() for view in [*queries, *database]}
    assert len(pictures) == len(queries) + len(database)
    # All 137 instances give more than four hundred queries.
    assert QUERIES * (len(crops) - len(crops) // 5) > 400


def test_test_views_are_a_function_of_the_seed() -> None:
    crops = instances(["page"])
    augment = demo_recipes()["HAMLET"].augment
    one, other, third = (render_test(crops, augment, 32, seed)[0][0].image for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_rank_gives_places_in_the_order_of_the_index() -> None:
    index = Index.build(np.eye(3, dtype=np.float32), ["c", "a", "b"])
    asked = np.array([[0.1, 0.9, 0.5], [0.9, 0.2, 0.3]], dtype=np.float32)
    assert rank(index, asked).T.tolist() == [[1, 2, 0], [0, 2, 1]]


def test_describe_batches_change_nothing() -> None:
    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    views = [View(str(number), number, torch.full((3, 4, 4), number / 200)) for number in range(150)]
    assert np.allclose(describe(Mean(), views)[:, 0], np.arange(150) / 200)

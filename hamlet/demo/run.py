"""The demo from end to end: train a HAMLET and a GeM baseline on the same views, search with both, and report."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, Views, instances
from hamlet.demo.evaluation import DISTRACTOR_EVERY, View, describe, rank, render_test
from hamlet.demo.report import write_demo_report
from hamlet.demo.teacher import TEACHER_NAME, make_teacher
from hamlet.files import replacing
from hamlet.retrieval import Index
from hamlet.retrieval.cost import measure_cost
from hamlet.retrieval.metrics import labelled
from hamlet.training import Recipe, build_model, load_recipe, train

BASELINE = (
    "model.name=gem_resnet18",
    "model.options={}",
    "stages=[{until: 1, classification: 1}]",
)
"""What the baseline changes in the recipe: the model, and its losses to the classification alone."""


def run_demo(out: Path, *, steps: int | None = None, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Run the demo, write `results.json` and `report.html` to a folder, and return the results.

    Called again with the same arguments it trains on from its checkpoints; what is trained is only measured again.

    Args:
        out: the folder, made where it is missing.
        steps: of training of each model; default the recipe's.
        seed: of the weights, the views and their order.
        progress: tell on stderr what is being done.

    Raises:
        ValueError: `out` holds a demo of another seed or number of steps.
    """
    console = Console(stderr=True, quiet=not progress)
    begun = time.monotonic()
    recipes = demo_recipes(steps, seed)
    size, augment = recipes["HAMLET"].image_size, recipes["HAMLET"].augment

    console.print("cutting scikit-image's photographs into instances, and making the teacher's cache")
    trained_on = instances(list(TRAIN_PHOTOGRAPHS))
    views = Views(trained_on, augment, size)
    teacher = make_teacher(trained_on)
    models, histories = {}, {}
    for name, recipe in recipes.items():
        console.print(f"training {name} for {recipe.steps} steps")
        models[name] = build_model(recipe)
        histories[name] = train(models[name], recipe, views, out=out / name.lower(), teacher=teacher, progress=progress)
        # Training may have moved it to a GPU; pictures this small are described and timed on the CPU.
        models[name].cpu()

    console.print("searching among instances that training never saw")
    tested_on = instances(list(TEST_PHOTOGRAPHS))
    queries, database = render_test(tested_on, augment, size, seed)
    measured, ranks = {}, {}
    for name, model in models.items():
        measured[name], ranks[name] = _measure(model, queries, database, size, out / f"{name.lower()}.index")
    results = {
        "settings": {"steps": recipes["HAMLET"].steps, "seed": seed, "image_size": size, "teacher": TEACHER_NAME},
        "machine": f"{platform.machine()} with {torch.get_num_threads()} threads, torch {torch.__version__}",
        "train": {"photographs": list(TRAIN_PHOTOGRAPHS), "instances": len(trained_on)},
        "test": {
            "photographs": list(TEST_PHOTOGRAPHS),
            "instances": len(tested_on),
            "distractors": len(tested_on) // DISTRACTOR_EVERY,
            "queries": len(queries),
            "database": len(database),
        },
        "models": measured,
    }
    with replacing(out / "results.json") as file:
        file.write(json.dumps(results, indent=2).encode())
    write_demo_report(out / "report.html", results, histories, ranks, queries, database, models["HAMLET"])
    console.print(f"done in {time.monotonic() - begun:.0f} s")
    return results


def demo_recipes(steps: int | None = None, seed: int = 0) -> dict[str, Recipe]:
    """The recipes of both models, by the models' names; they differ in what `BASELINE` says alone."""
    chosen = [f"seed={seed}"]
    if steps is not None:
        usual = load_recipe("demo")
        chosen += [f"steps={steps}", f"optimizer.warmup={usual.optimizer.warmup * steps // usual.steps}"]
    return {"HAMLET": load_recipe("demo", chosen), "GeM": load_recipe("demo", [*chosen, *BASELINE])}


def _measure(
    model: nn.Module, queries: Sequence[View], database: Sequence[View], size: int, path: Path
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Index the database, search it with the queries, and measure what is found and what it costs; and the ranks."""
    index = Index.build(describe(model, database), [view.name for view in database])
    index.save(path)
    ranks = rank(index, describe(model, queries))
    metrics = labelled(ranks, [view.label for view in database], [view.label for view in queries])
    return {"metrics": metrics, "cost": asdict(measure_cost(model, size))}, ranks

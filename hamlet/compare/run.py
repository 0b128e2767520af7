"""A comparison from end to end: train, measure and keep each model and seed, then tell of them all."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hamlet.compare.report import write_comparison
from hamlet.compare.task import Task
from hamlet.files import replacing
from hamlet.models import UNAVAILABLE, Model
from hamlet.retrieval.cost import measure_cost
from hamlet.training import Recipe, build_model, train
from hamlet.training.state import HARMLESS, check_same, identity


def compare(task: Task, recipes: Sequence[Recipe], out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Run a comparison, and write comparison.json, comparison.html and comparison.png to a folder.

    Every model and seed is kept as soon as it is measured, so a run that was killed goes on with the next step of the
    model that it was training.

    Args:
        task: what to train on and how to measure.
        recipes: one for each model and seed; see :func:`hamlet.compare.comparison_recipes`.
        out: the folder, made where it is missing.
        progress: tell on stderr what is being done.

    Returns:
        What comparison.json holds: "description", "machine", "steps", "seeds", "image_size" (of the cost),
        "main_setups", "models" (model -> one entry a seed: "seed", "metrics", "cost"), "unavailable" (method ->
        reason).

    Raises:
        ValueError: ``out`` holds a run of another recipe, or whatever the training refuses.
    """
    console = Console(stderr=True, quiet=not progress)
    models: dict[str, list[dict[str, Any]]] = {}
    for number, recipe in enumerate(recipes, start=1):
        name = recipe.model.name
        console.print(f"{number} of {len(recipes)}: {name}, seed {recipe.seed}, {recipe.steps} steps")
        found = measure_run(task, recipe, run_folder(out, recipe), progress=progress)
        models.setdefault(name, []).append({key: found[key] for key in ("seed", "metrics", "cost")})
    results = {
        "description": task.description,
        "machine": machine(),
        "steps": recipes[0].steps,
        "seeds": sorted({recipe.seed for recipe in recipes}),
        "image_size": task.cost_size,
        "main_setups": list(task.main_setups),
        "models": models,
        "unavailable": UNAVAILABLE,
    }
    with replacing(out / "comparison.json") as file:
        file.write(json.dumps(results, indent=2).encode())
    write_comparison(out, results)
    return results


def measure_run(task: Task, recipe: Recipe, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train and measure one model with one seed, or read what was measured: "identity", "seed", "metrics" and "cost".

    Raises:
        ValueError: the folder holds a result of another recipe.
    """
    path = folder / "result.json"
    model = build_model(recipe)
    who = _identity(model, task, recipe)
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_same(path, kept["identity"], who)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return kept
    train(model, recipe, task.training, out=folder, teacher=task.teacher, progress=progress)
    metrics = task.measure(model, folder)
    # Training may have moved it to a GPU; what is compared is the cost on the CPU.
    cost = asdict(measure_cost(model.cpu(), task.cost_size))
    found = {"identity": who, "seed": recipe.seed, "metrics": metrics, "cost": cost}
    with replacing(path) as file:
        file.write(json.dumps(found, indent=2).encode())
    # Four times as large as the model, and of no more use.
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return found


def run_folder(out: Path, recipe: Recipe) -> Path:
    """Where a model and seed are kept below a comparison's folder."""
    return out / recipe.model.name / f"seed-{recipe.seed}"


def machine() -> str:
    """The machine, in words."""
    return f"{platform.machine()} with {torch.get_num_threads()} threads, torch {torch.__version__}"


def _identity(model: Model, task: Task, recipe: Recipe) -> dict[str, Any]:
    """All that decides a result but the code, as it comes back from JSON."""
    training = identity(model, recipe, task.training, task.teacher)
    deciding = {name: value for name, value in training.items() if name not in HARMLESS}
    who: dict[str, Any] = json.loads(json.dumps({**deciding, "test": task.test, "longest side": task.cost_size}))
    return who

"""A comparison from end to end: train, measure and keep each model and seed, then tell of them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hamlet import processes
from hamlet.compare.cost import measure_costs
from hamlet.compare.plan import Run
from hamlet.compare.report import write_comparison
from hamlet.compare.task import Task
from hamlet.environment import machine, version
from hamlet.files import write_json
from hamlet.models import UNAVAILABLE, Model, load_checkpoint
from hamlet.retrieval.shards import alone_in
from hamlet.training import Recipe, build_model, train
from hamlet.training.state import HARMLESS, check_same, identity


def compare(task: Task, runs: Sequence[Run], out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Run a comparison, and write comparison.json, comparison.html and comparison.png to a folder.

    Every model and seed is kept as soon as it is measured, so a run that was killed goes on with the next step of the
    model that it was training. What they cost is measured at the end, of all models in turns, with the weights of the
    first seed. Of several processes, as ``torchrun`` starts them, all train, and the first alone writes.

    Args:
        task: what to train on and how to measure.
        runs: one for each model and seed; see :func:`hamlet.compare.comparison_runs`.
        out: the folder, made where it is missing.
        progress: tell on stderr what is being done.

    Returns:
        What comparison.json holds: "description", "version" (of this package, as the costs were measured), "machine"
        and "image_size" (of the costs), "steps", "seeds", "main_setups", "models" (name -> "method", "backbone",
        "runs", which has "seed" and "metrics" for each seed, and "cost"), "unavailable" (method -> reason).

    Raises:
        ValueError: ``out`` holds a run of another recipe, another process is at work on one, or whatever the training
            refuses.
        LeftToFirst: in every process but the first, when all models are measured.
    """
    progress = progress and processes.rank() == 0
    console = Console(stderr=True, quiet=not progress)
    models: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(runs, start=1):
        recipe = run.recipe
        console.print(f"{number} of {len(runs)}: {run.name}, seed {recipe.seed}, {recipe.steps} steps")
        found = measure_run(task, recipe, run_folder(out, run.name, recipe.seed), progress=progress)
        row = models.setdefault(run.name, {"method": run.method, "backbone": run.backbone, "runs": []})
        row["runs"].append({key: found[key] for key in ("seed", "metrics")})
    processes.leave_to_first()
    console.print("timing all models in turns")
    weights = {name: run_folder(out, name, row["runs"][0]["seed"]) / "model.pt" for name, row in models.items()}
    costs = measure_costs({name: load_checkpoint(path)[0] for name, path in weights.items()}, task.cost_size)
    for name, cost in costs.items():
        models[name]["cost"] = asdict(cost)
    results = {
        "description": task.description,
        "version": version(),
        "machine": machine(),
        "image_size": task.cost_size,
        "steps": runs[0].recipe.steps,
        "seeds": sorted({run.recipe.seed for run in runs}),
        "main_setups": list(task.main_setups),
        "models": models,
        "unavailable": UNAVAILABLE,
    }
    write_json(out / "comparison.json", results)
    write_comparison(out, results)
    return results


def measure_run(task: Task, recipe: Recipe, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train and measure one model with one seed, or read what was measured: "identity", "seed" and "metrics".

    Raises:
        ValueError: the folder holds a result of another recipe, or another process is at work in it.
    """
    path = folder / "result.json"
    model = build_model(recipe)
    who = _identity(model, task, recipe)
    with ExitStack() as held:
        if processes.rank() == 0:
            held.enter_context(alone_in(folder))
        if not path.is_file():
            train(model, recipe, task.training, out=folder, teacher=task.teacher, progress=progress)
            _measure(task, model, path, {"identity": who, "seed": recipe.seed})
            processes.wait_for_all()
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_same(path, kept["identity"], who)
        # Four times as large as the model, and of no more use.
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return kept


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where a model and seed are kept below a comparison's folder."""
    return out / name / f"seed-{seed}"


def _measure(task: Task, model: Model, path: Path, who: dict[str, Any]) -> None:
    """Write what was measured; processes that are not the first leave that to it."""
    try:
        metrics = task.measure(model, path.parent)
        processes.leave_to_first()
    except processes.LeftToFirst:
        return
    write_json(path, {**who, "metrics": metrics})


def _identity(model: Model, task: Task, recipe: Recipe) -> dict[str, Any]:
    """All that decides a result but the code, as it comes back from JSON."""
    training = identity(model, recipe, task.training, task.teacher)
    deciding = {name: value for name, value in training.items() if name not in HARMLESS}
    who: dict[str, Any] = json.loads(json.dumps({**deciding, "test": task.test, "longest side": task.cost_size}))
    return who

"""The demo from end to end: a comparison of a HAMLET and a GeM baseline, and a report of what both found."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hamlet.compare.cost import measure_costs
from hamlet.compare.plan import method_recipe, with_warmup
from hamlet.compare.run import measure_run, run_folder
from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from hamlet.demo.evaluation import DISTRACTOR_EVERY
from hamlet.demo.report import write_demo_report
from hamlet.demo.task import DemoTask
from hamlet.demo.teacher import TEACHER_NAME
from hamlet.environment import machine
from hamlet.files import replacing
from hamlet.models import load_checkpoint
from hamlet.training import Recipe, load_recipe


def run_demo(out: Path, *, steps: int | None = None, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Run the demo, write `results.json` and `report.html` to a folder, and return the results.

    Called again with the same arguments it goes on from where it was; what is measured is kept.

    Args:
        out: the folder, made where it is missing.
        steps: of training of each model; default the recipe's.
        seed: of the weights, the views and their order.
        progress: tell on stderr what is being done.

    Raises:
        ValueError: `out` holds a demo of the same seed and another number of steps.
    """
    console = Console(stderr=True, quiet=not progress)
    begun = time.monotonic()
    recipes = demo_recipes(steps, seed)
    console.print("cutting scikit-image's photographs into instances, and making the teacher's cache")
    task = DemoTask(recipes["HAMLET"])
    measured: dict[str, dict[str, Any]] = {}
    models, histories, ranks = {}, {}, {}
    for name, recipe in recipes.items():
        console.print(f"training {name} for {recipe.steps} steps, then searching among instances that it never saw")
        folder = run_folder(out, recipe.model.name, seed)
        found = measure_run(task, recipe, folder, progress=progress)
        measured[name] = {"metrics": found["metrics"]["all"]}
        models[name], _ = load_checkpoint(folder / "model.pt")
        histories[name] = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        ranks[name] = task.ranks(models[name], folder)
    for name, cost in measure_costs(models, task.cost_size).items():
        measured[name]["cost"] = asdict(cost)
    results = {
        "settings": {
            "steps": recipes["HAMLET"].steps,
            "seed": seed,
            "image_size": task.cost_size,
            "teacher": TEACHER_NAME,
        },
        "machine": machine(),
        "train": {"photographs": list(TRAIN_PHOTOGRAPHS), "instances": len(task.trained_on)},
        "test": {
            "photographs": list(TEST_PHOTOGRAPHS),
            "instances": len(task.tested_on),
            "distractors": len(task.tested_on) // DISTRACTOR_EVERY,
            "queries": len(task.queries),
            "database": len(task.database),
        },
        "models": measured,
    }
    with replacing(out / "results.json") as file:
        file.write(json.dumps(results, indent=2).encode())
    write_demo_report(
        out / "report.html", results, histories, ranks, task.queries, task.database, models["HAMLET"].eval()
    )
    console.print(f"done in {time.monotonic() - begun:.0f} s")
    return results


def demo_recipes(steps: int | None = None, seed: int = 0) -> dict[str, Recipe]:
    """The recipes of both models, by the models' names; they differ in the model and its losses alone."""
    chosen = [f"seed={seed}"]
    if steps is not None:
        chosen = with_warmup("demo", [*chosen, f"steps={steps}"])
    return {"HAMLET": load_recipe("demo", chosen), "GeM": method_recipe("demo", chosen, "gem", "resnet18")}

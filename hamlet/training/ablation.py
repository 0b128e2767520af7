"""Ablations: what each part of HAMLET is worth, by training without it, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hamlet import processes
from hamlet.files import write_json
from hamlet.models import load_checkpoint
from hamlet.training.ablation_report import Row, write_results
from hamlet.training.loop import train
from hamlet.training.recipe import ModelRecipe, Recipe, StageRecipe
from hamlet.training.run import build_model, held_out, load_teacher, training_set
from hamlet.training.state import check_same, identity


def _without_part(name: str) -> Callable[[Recipe], Recipe]:
    def change(recipe: Recipe) -> Recipe:
        model: ModelRecipe = replace(recipe.model, options={**recipe.model.options, name: False})
        return replace(recipe, model=model)

    return change


def _without_losses(*names: str) -> Callable[[Recipe], Recipe]:
    def change(recipe: Recipe) -> Recipe:
        weights: Any = dict.fromkeys(names, 0.0)
        stages: tuple[StageRecipe, ...] = tuple(replace(stage, **weights) for stage in recipe.stages)
        return replace(recipe, stages=stages)

    return change


def _without_curriculum(recipe: Recipe) -> Recipe:
    return replace(recipe, curriculum=replace(recipe.curriculum, difficulty="none", file=None))


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "HAMLET": lambda recipe: recipe,
    "no ACSA": _without_part("acsa"),
    "no CECM": _without_part("cecm"),
    "no HFFN": _without_part("hffn"),
    "no MKDM": _without_losses("distillation", "consistency"),
    "no hierarchy": _without_losses("hierarchy", "coarse"),
    "no curriculum": _without_curriculum,
}
"""What each row of the table changes in the recipe."""


def ablate(
    recipe: Recipe,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    variants: Sequence[str] = tuple(VARIANTS),
    progress: bool = True,
) -> list[Row]:
    """Train each variant of a recipe with each seed, and measure what is held out (``data.validation``).

    All variants of a seed come before the next seed, so a table begun is worth reading. A run that was stopped goes on,
    and one that is done is not trained again. ``out`` gets a folder for each run, and after each run anew
    results.json, table.md and table.png.

    Args:
        recipe: of :func:`hamlet.training.load_recipe`; its seed is not used.
        out: the folder, made where it is missing.
        seeds: of weights, order and views.
        variants: some of :data:`VARIANTS`, "HAMLET" first, since the others are compared with it.
        progress: show on stderr what is being done.

    Raises:
        ValueError: a variant that there is not, one that changes nothing in this recipe, no seeds, no
            ``data.validation``, several processes, a folder that holds runs of another recipe, teacher or set of
            pictures, or anything that training refuses.
    """
    if processes.count() > 1:
        raise ValueError(f"processes: got {processes.count()}, expected one, as the runs of an ablation are not shared")
    out = Path(out)
    recipes = _recipes(recipe, seeds, tuple(variants))
    console = Console(stderr=True, quiet=not progress)
    measure = held_out(recipe, progress=progress)
    teacher = load_teacher(recipe)
    dataset = training_set(recipe, teacher, progress=progress)
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for number, ((seed, variant), changed) in enumerate(recipes.items(), start=1):
        folder = out / f"{variant.lower().replace(' ', '-')}-{seed}"
        model = build_model(changed)
        who = {**identity(model, changed, dataset, teacher), "held out": measure.digest}
        score = _read_score(folder / "score.json", who)
        if score is None:
            console.print(f"{number} of {len(recipes)}: {variant}, seed {seed}")
            train(model, changed, dataset, out=folder, teacher=teacher, progress=progress)
            # From the file, as anyone else would: the same whether the run ended just now or before.
            score = measure(load_checkpoint(folder / "model.pt")[0])
            write_json(folder / "score.json", {"map": score, "identity": who})
        # Four times as large as the model, and of no more use.
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        found[variant].append(score)
        rows = [Row(name, tuple(maps)) for name, maps in found.items() if maps]
        write_results(out, rows, recipe, seeds)
    return rows


def _recipes(recipe: Recipe, seeds: Sequence[int], variants: tuple[str, ...]) -> dict[tuple[int, str], Recipe]:
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ValueError(f"variants: got {', '.join(unknown)}, expected some of {', '.join(VARIANTS)}")
    if variants[:1] != ("HAMLET",):
        raise ValueError(f"variants: got {', '.join(variants) or 'none'}, expected HAMLET first")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: got {tuple(seeds)}, expected at least one, each once")
    changed = {variant: VARIANTS[variant](recipe) for variant in variants}
    if same := [name for name, each in changed.items() if each == recipe and name != "HAMLET"]:
        raise ValueError(f"variants: {', '.join(same)} changes nothing: the recipe does not use that part")
    return {(seed, variant): replace(changed[variant], seed=seed) for seed in seeds for variant in variants}


def _read_score(path: Path, who: Mapping[str, Any]) -> float | None:
    """What a run that is done was measured to have; None where it is not done.

    Raises:
        ValueError: a score of another run, with what differs, or of none.
    """
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        score, before = float(kept["map"]), dict(kept["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out: {path} holds no score of an ablation; remove it to measure again") from error
    check_same(path, before, who)
    return score

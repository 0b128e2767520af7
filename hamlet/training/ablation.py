"""Ablations: what each part of HAMLET is worth, by training without it, over several seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hamlet.files import replacing, write_json
from hamlet.models import load_checkpoint
from hamlet.training.recipe import ModelRecipe, Recipe, StageRecipe
from hamlet.training.run import held_out, train_recipe


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


@dataclass(frozen=True)
class Row:
    """A variant's mAP with each seed, on the pictures held out, of the weights at the end of training."""

    variant: str
    maps: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.maps)

    @property
    def deviation(self) -> float:
        """The sample standard deviation over the seeds; NaN with one."""
        return statistics.stdev(self.maps) if len(self.maps) > 1 else float("nan")


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
    and one that is done is not trained again. ``out`` gets a folder for each run, results.json and table.md, written
    anew after each run.

    Raises:
        ValueError: a variant that there is not, one that changes nothing in this recipe, no seeds, no
            ``data.validation``, or anything that training refuses.
    """
    out = Path(out)
    recipes = _recipes(recipe, seeds, variants)
    console = Console(stderr=True, quiet=not progress)
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    measure = held_out(recipe, progress=progress)
    for (seed, variant), changed in recipes.items():
        folder = out / f"{variant.lower().replace(' ', '-')}-{seed}"
        score = _read_score(folder)
        if score is None:
            console.print(f"{variant}, seed {seed}")
            train_recipe(changed, folder, progress=progress)
            # From the file, as anyone else would: the same whether the run ended just now or before.
            score = measure(load_checkpoint(folder / "model.pt")[0])
            write_json(folder / "score.json", {"map": score})
        found[variant].append(score)
        rows = [Row(name, tuple(maps)) for name, maps in found.items() if maps]
        write_json(out / "results.json", [{"variant": row.variant, "map": row.maps} for row in rows])
        with replacing(out / "table.md") as file:
            file.write(table(rows).encode())
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, mAP in percent; differences are from the first row, seed by seed.

    Example:
        >>> print(table([Row("HAMLET", (0.5, 0.52)), Row("no ACSA", (0.47, 0.51))]))
        | | mAP | deviation | difference | its deviation | seeds |
        |---|---|---|---|---|---|
        | HAMLET | 51.00 | 1.41 | | | 2 |
        | no ACSA | 49.00 | 2.83 | -2.00 | 1.41 | 2 |
        <BLANKLINE>
    """
    lines = ["| | mAP | deviation | difference | its deviation | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        apart = ("", "")
        if row is not rows[0]:
            # The same seed is the same order of samples, so the differences vary less than the figures.
            pairs = zip(row.maps, rows[0].maps, strict=False)
            difference = Row("", tuple(one - other for one, other in pairs))
            apart = (f" {100 * difference.mean:+.2f}", f" {100 * difference.deviation:.2f}")
        figures = f"{100 * row.mean:.2f} | {100 * row.deviation:.2f} |{apart[0]} |{apart[1]} | {len(row.maps)}"
        lines.append(f"| {row.variant} | {figures} |")
    return "\n".join(lines) + "\n"


def _recipes(recipe: Recipe, seeds: Sequence[int], variants: Sequence[str]) -> dict[tuple[int, str], Recipe]:
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise ValueError(f"variants: got {', '.join(unknown)}, expected some of {', '.join(VARIANTS)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: got {tuple(seeds)}, expected at least one, each once")
    changed = {variant: VARIANTS[variant](recipe) for variant in variants}
    if same := [name for name, each in changed.items() if each == recipe and name != "HAMLET"]:
        raise ValueError(f"variants: {', '.join(same)} changes nothing: the recipe does not use that part")
    return {(seed, variant): replace(changed[variant], seed=seed) for seed in seeds for variant in variants}


def _read_score(folder: Path) -> float | None:
    path = folder / "score.json"
    return float(json.loads(path.read_text())["map"]) if path.is_file() else None

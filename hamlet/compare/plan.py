"""What a comparison trains: one recipe for each model and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hamlet.models.registry import FAMILIES, UNAVAILABLE, check_available, split
from hamlet.training import Recipe, load_recipe

PLAIN = ("model.options={}", "loss.distilled_levels=[]")
HAMLET_LOSSES = ("distillation", "consistency", "hierarchy", "coarse", "budget")
"""What a method other than HAMLET does without: HAMLET's options and losses are HAMLET's own."""

OWN = {"spca": ("loss.classifier=arcface", "loss.scale=32", "loss.margin=8.594")}
"""Settings that belong to a method's definition; SpCa's margin is 0.15 radians."""


def comparison_recipes(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    models: Sequence[str] = tuple(FAMILIES),
    backbones: Sequence[str] = ("resnet18",),
    seeds: int = 1,
) -> list[Recipe]:
    """The recipes of all models on all backbones, each with ``seeds`` seeds that count up from the recipe's.

    Args:
        recipe, overrides: see :func:`hamlet.training.load_recipe`.
        models: methods, such as ``gem``.
        backbones: registered ones, or timm's names.
        seeds: how many.

    Raises:
        ValueError: nothing to compare, a method or backbone that does not exist, or one given twice.
        NotImplementedError: a method that cannot be had, with the reason.

    Example:
        >>> found = comparison_recipes("folder", models=["gem", "spoc"], seeds=2)
        >>> [(each.model.name, each.seed) for each in found]
        [('gem_resnet18', 0), ('gem_resnet18', 1), ('spoc_resnet18', 0), ('spoc_resnet18', 1)]
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    for name, values in (("models", models), ("backbones", backbones)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: got {list(values)}, expected one or more, each once")
    for model in models:
        check_available(model)
        if model not in FAMILIES:
            known = f"{', '.join(FAMILIES)}; not available: {', '.join(UNAVAILABLE)}"
            raise ValueError(f"models: got {model!r}, expected some of {known}")
    overrides = with_warmup(recipe, overrides)
    first = load_recipe(recipe, overrides).seed
    names = [(model, f"{model}_{backbone}") for backbone in backbones for model in models]
    for _, name in names:
        split(name)
    return [
        method_recipe(recipe, [*overrides, f"model.name={name}", f"seed={first + number}"], model)
        for model, name in names
        for number in range(seeds)
    ]


def with_warmup(recipe: str | Path, overrides: Sequence[str]) -> list[str]:
    """Overrides that, where they set the steps and not the warm-up, keep the share of the steps that it takes.

    Example:
        >>> with_warmup("demo", ["steps=25"])
        ['steps=25', 'optimizer.warmup=2']
    """
    given = {key: value for key, _, value in (each.partition("=") for each in overrides)}
    if "optimizer.warmup" in given or not given.get("steps", "").isdecimal():
        return list(overrides)
    usual = load_recipe(recipe)
    return [*overrides, f"optimizer.warmup={usual.optimizer.warmup * int(given['steps']) // usual.steps}"]


def method_recipe(recipe: str | Path, overrides: Sequence[str], model: str) -> Recipe:
    """A recipe that was written for HAMLET as another method takes it: the same pictures, the classification alone."""
    if model == "hamlet":
        return load_recipe(recipe, overrides)
    plain = load_recipe(recipe, [*overrides, *PLAIN, *OWN.get(model, ())])
    none: dict[str, Any] = dict.fromkeys(HAMLET_LOSSES, 0.0)
    return replace(plain, stages=tuple(replace(stage, **none) for stage in plain.stages))

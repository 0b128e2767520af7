"""What a comparison trains: one recipe for each model and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hamlet.models.registry import FAMILIES, check_available, split
from hamlet.training import Recipe, load_recipe

PLAIN = (
    "model.options={}",
    "stages=[{until: 1, classification: 1}]",
    "loss.distilled_levels=[]",
)
"""What a method other than HAMLET changes in a recipe: HAMLET's options and losses are HAMLET's own."""

OWN = {"spca": ("loss.scale=32", "loss.margin=8.594")}
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
            raise ValueError(f"models: got {model!r}, expected some of {', '.join(FAMILIES)}")
    first = load_recipe(recipe, overrides).seed
    names = [(model, f"{model}_{backbone}") for backbone in backbones for model in models]
    for _, name in names:
        split(name)
    return [
        load_recipe(recipe, [*overrides, *method_settings(model), f"model.name={name}", f"seed={first + number}"])
        for model, name in names
        for number in range(seeds)
    ]


def method_settings(model: str) -> tuple[str, ...]:
    """What a method changes in a recipe that was written for HAMLET."""
    return () if model == "hamlet" else (*PLAIN, *OWN.get(model, ()))

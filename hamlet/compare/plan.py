"""What a comparison trains: one recipe for each model and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hamlet.models.registry import BACKBONES, FAMILIES, check_available, split, unavailable
from hamlet.training import Recipe, load_recipe

PLAIN = ("model.options={}", "loss.distilled_levels=[]")
HAMLET_LOSSES = ("distillation", "consistency", "hierarchy", "coarse", "budget")
"""What a method other than HAMLET does without: HAMLET's options and losses are HAMLET's own."""

CONTROLS = {"gem_centred": "gem", "hamlet_classification": "hamlet", "spca_recipe_loss": "spca"}
"""Rows beside the methods, and the method of each, that tell where a difference comes from: GeM that ends in HAMLET's
batch normalisation, HAMLET with the losses that the others have, SpCa with the classification loss of the recipe."""

OWN = {
    "spca": ("loss.classifier=arcface", "loss.scale=32", "loss.margin=8.594"),
    "gem_centred": ("model.options={centre: true}",),
}
"""Settings that belong to a row's definition; SpCa's margin is 0.15 radians."""


@dataclass(frozen=True)
class Run:
    """One model to train with one seed.

    Args:
        method: one of the methods or of :data:`CONTROLS`.
        backbone: as it was asked for.
        recipe: how it is trained.
    """

    method: str
    backbone: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """The row of the table that it counts towards, and the name of its folder."""
        return f"{self.method}_{self.backbone}"


def comparison_runs(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] = (*FAMILIES, *CONTROLS),
    backbones: Sequence[str] = ("resnet18",),
    seeds: int = 1,
) -> list[Run]:
    """All methods on all backbones, each with ``seeds`` seeds that count up from the recipe's.

    Args:
        recipe, overrides: see :func:`hamlet.training.load_recipe`.
        methods: such as ``gem``, and :data:`CONTROLS`.
        backbones: registered ones, or timm's names.
        seeds: how many.

    Raises:
        ValueError: nothing to compare, a method or backbone that does not exist, or one given twice; a stage without
            the classification loss, which is all that methods other than HAMLET have.
        NotImplementedError: a method that cannot be had, with the reason.

    Example:
        >>> found = comparison_runs("folder", methods=["gem", "gem_centred"], seeds=2)
        >>> [(each.name, each.recipe.seed) for each in found]
        [('gem_resnet18', 0), ('gem_resnet18', 1), ('gem_centred_resnet18', 0), ('gem_centred_resnet18', 1)]
        >>> found[-1].recipe.model
        ModelRecipe(name='gem_resnet18', descriptor_dim=512, pretrained=False, options={'centre': True})
    """
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}, expected at least 1")
    for name, values in (("models", methods), ("backbones", backbones)):
        if not values or len({BACKBONES.get(value, value) for value in values}) < len(values):
            raise ValueError(f"{name}: got {list(values)}, expected one or more, each once")
    for method in methods:
        check_available(method)
        if method not in FAMILIES and method not in CONTROLS:
            known = f"{', '.join((*FAMILIES, *CONTROLS))}; not available: {unavailable()}"
            raise ValueError(f"models: got {method!r}, expected some of {known}")
    overrides = with_warmup(recipe, overrides)
    first = load_recipe(recipe, overrides).seed
    pairs = [(method, backbone) for backbone in backbones for method in methods]
    for method, backbone in pairs:
        split(f"{CONTROLS.get(method, method)}_{backbone}")
    return [
        Run(method, backbone, method_recipe(recipe, [*overrides, f"seed={first + number}"], method, backbone))
        for method, backbone in pairs
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


def method_recipe(recipe: str | Path, overrides: Sequence[str], method: str, backbone: str) -> Recipe:
    """A recipe that was written for HAMLET as a method takes it: the same pictures, the classification alone."""
    family = CONTROLS.get(method, method)
    overrides = [*overrides, f"model.name={family}_{backbone}"]
    if method == "hamlet":
        return load_recipe(recipe, overrides)
    others = PLAIN if family != "hamlet" else ()
    plain = load_recipe(recipe, [*overrides, *others, *OWN.get(method, ())])
    for number, stage in enumerate(plain.stages):
        if not stage.classification:
            raise ValueError(
                f"stages[{number}].classification: got 0, expected more than 0, as {method} has no other loss"
            )
    none: dict[str, Any] = dict.fromkeys(HAMLET_LOSSES, 0.0)
    return replace(plain, stages=tuple(replace(stage, **none) for stage in plain.stages))

"""A whole run from its recipe: the model, the folder of pictures, the teacher, the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from hamlet.models import create_model
from hamlet.training.data import FolderDataset
from hamlet.training.loop import train
from hamlet.training.recipe import Recipe
from hamlet.training.teacher import TeacherCache


def train_recipe(
    recipe: Recipe, out: str | Path, *, progress: bool = True, stop_after: int | None = None
) -> tuple[Any, FolderDataset]:
    """Do what a recipe says, with the pictures below its ``data.root``.

    Args:
        recipe: of :func:`hamlet.training.load_recipe`.
        out: folder of the results, and of the checkpoint from which a stopped run goes on; see
            :func:`hamlet.training.train`.
        progress: show bars on stderr.
        stop_after: see :func:`hamlet.training.train`.

    Returns:
        The trained model, and the training set, whose ``skipped`` lists the pictures that were left out and why.

    Raises:
        ValueError: no ``data.root``, or anything that the model, the set, the teacher or the training refuses.
    """
    if recipe.data.root is None:
        raise ValueError("data.root: missing, expected a folder with a subfolder of pictures for each class")
    model = build_model(recipe)
    dataset = FolderDataset(recipe.data.root, recipe.augment, recipe.image_size, progress=progress)
    teacher = TeacherCache.load(recipe.data.teacher) if recipe.data.teacher is not None else None
    train(model, recipe, dataset, out=out, teacher=teacher, progress=progress, stop_after=stop_after)
    return model, dataset


def build_model(recipe: Recipe) -> Any:
    """The untrained model of a recipe, with weights drawn from its seed."""
    set_seed(recipe.seed)
    try:
        return create_model(
            recipe.model.name,
            descriptor_dim=recipe.model.descriptor_dim,
            pretrained=recipe.model.pretrained,
            **recipe.model.options,
        )
    except ValueError as error:
        raise ValueError(f"model: {error}") from error

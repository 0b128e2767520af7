"""A whole run from its recipe: the model, the pictures, the teacher, the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from hamlet.models import create_model
from hamlet.training.data import FolderDataset
from hamlet.training.dry_run import DryRun, dry_run
from hamlet.training.landmarks import LandmarkDataset
from hamlet.training.loop import train
from hamlet.training.recipe import Recipe
from hamlet.training.tars import TarDataset
from hamlet.training.teacher import TeacherCache
from hamlet.training.validation import FolderValidation

Pictures = FolderDataset | LandmarkDataset | TarDataset


def train_recipe(
    recipe: Recipe, out: str | Path, *, progress: bool = True, stop_after: int | None = None
) -> tuple[Any, Pictures]:
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
    model, dataset, teacher = _prepare(recipe, progress)
    validate = held_out(recipe, progress=progress) if recipe.validate_every else None
    train(model, recipe, dataset, out=out, teacher=teacher, validate=validate, progress=progress, stop_after=stop_after)
    return model, dataset


def try_recipe(recipe: Recipe, out: str | Path, *, progress: bool = True) -> tuple[DryRun, Pictures]:
    """Check all that :func:`train_recipe` would need, and take a few steps; see :func:`hamlet.training.dry_run`."""
    model, dataset, teacher = _prepare(recipe, progress)
    if recipe.validate_every:
        held_out(recipe, progress=progress)
    return dry_run(model, recipe, dataset, out=out, teacher=teacher), dataset


def held_out(recipe: Recipe, *, progress: bool = True) -> FolderValidation:
    """The mAP of a model on the pictures that a recipe holds out; ValueError where it names none."""
    if recipe.data.validation is None:
        raise ValueError("data.validation: missing, expected a folder with subfolders of pictures that are held out")
    return FolderValidation(recipe.data.validation, recipe.image_size, progress=progress)


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


def training_set(recipe: Recipe, teacher: TeacherCache | None = None, *, progress: bool = True) -> Pictures:
    """The pictures below a recipe's ``data.root``, of its kind, without those that the teacher failed at.

    Raises:
        ValueError: no ``data.root``, or what the set refuses.
    """
    data = recipe.data
    if data.root is None:
        raise ValueError("data.root: missing, expected a folder with a subfolder of pictures for each class")
    how: dict[str, Any] = {"without": teacher.failures if teacher is not None else (), "progress": progress}
    if data.kind == "landmarks":
        return LandmarkDataset(data.root, recipe.augment, data.aspects, check=data.check, **how)
    if data.kind == "tars":
        if data.aspects != (1.0,):
            raise ValueError(f"data.aspects: got {data.aspects}, expected (1.0,) with tars, whose views are square")
        return TarDataset(data.root, recipe.augment, check=data.check, **how)
    return FolderDataset(data.root, recipe.augment, data.aspects, **how)


def load_teacher(recipe: Recipe) -> TeacherCache | None:
    """The teacher that a recipe names, if it names one."""
    return TeacherCache.load(recipe.data.teacher) if recipe.data.teacher is not None else None


def _prepare(recipe: Recipe, progress: bool) -> tuple[Any, Pictures, TeacherCache | None]:
    model, teacher = build_model(recipe), load_teacher(recipe)
    return model, training_set(recipe, teacher, progress=progress), teacher

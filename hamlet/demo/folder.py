"""The demo's photographs as folders of pictures, for `hamlet train` and `hamlet ablate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, Instance, instances
from hamlet.demo.evaluation import render_test
from hamlet.demo.teacher import make_teacher
from hamlet.files import replacing
from hamlet.training import load_recipe


def write_photographs(out: Path, *, seed: int = 0) -> dict[str, Path]:
    """Write train/PHOTOGRAPH/INSTANCE/0.png, validation/PHOTOGRAPH/INSTANCE/0.png, 1.png ... and teacher.safetensors.

    Training pictures are the clean squares; those for validation are the views that the demo tests with, of photographs
    that training has none of. The teacher is the demo's.

    Args:
        out: a folder, made where it is missing.
        seed: of the views.

    Returns:
        The paths, as "data.root", "data.validation" and "data.teacher" of a recipe.
    """
    recipe = load_recipe("demo")
    train, test = instances(list(TRAIN_PHOTOGRAPHS)), instances(list(TEST_PHOTOGRAPHS))
    for instance in train:
        _write(out / "train", instance, [instance.pixels])
    queries, database = render_test(test, recipe.augment, recipe.image_size, seed)
    views: list[list[Tensor]] = [[] for _ in test]
    for view in (*queries, *database):
        views[view.label].append(view.image)
    for instance, images in zip(test, views, strict=True):
        _write(out / "validation", instance, images)
    teacher = make_teacher(train)
    names = tuple(_name(instance, 0) for instance in train)
    replace(teacher, ids=names).save(out / "teacher.safetensors")
    names_of = {"data.root": "train", "data.validation": "validation", "data.teacher": "teacher.safetensors"}
    return {key: out / name for key, name in names_of.items()}


def _write(folder: Path, instance: Instance, images: Sequence[Tensor]) -> None:
    for number, image in enumerate(images):
        with replacing(folder / _name(instance, number)) as file:
            transforms.to_pil_image(image).save(file, format="png")


def _name(instance: Instance, number: int) -> str:
    return f"{instance.photograph}/{instance.name}/{number}.png"

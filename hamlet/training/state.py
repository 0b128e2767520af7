"""What a training run keeps on disk, so that it can be killed at any moment and taken up again without a trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hamlet.files import replacing
from hamlet.settings import to_plain
from hamlet.training.recipe import Recipe
from hamlet.training.teacher import TeacherCache

FORMAT = "hamlet-training"
VERSION = 3
HARMLESS = {
    "recipe.checkpoint_every",
    "recipe.validate_every",
    "recipe.curriculum.file",
    *(f"recipe.data.{name}" for name in ("check", "workers", "root", "teacher", "validation")),
}
"""What may differ when a run is taken up again: speed, and where things lie, as long as pictures keep their names."""


def identity(model: Any, recipe: Recipe, dataset: Any, teacher: TeacherCache | None) -> dict[str, Any]:
    """All that decides a run's course, as dotted names and plain values."""
    labels = [[int(label) for label in level] for level in (dataset.labels, *getattr(dataset, "hierarchy", ()))]
    file = recipe.curriculum.file
    samples = json.dumps([list(getattr(dataset, "ids", ())), labels])
    return _flat(
        {
            "recipe": to_plain(recipe),
            "model": {"name": model.name, **to_plain(model.config)},
            "dataset": hashlib.sha256(samples.encode()).hexdigest()[:16],
            "teacher": teacher.fingerprint() if teacher is not None else None,
            "difficulty": hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file is not None else None,
        }
    )


def save_state(path: Path, who: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a run's state; the file is whole or the one before."""
    content = {"format": FORMAT, "version": VERSION, "identity": dict(who), "state": dict(state)}
    with replacing(path) as file:
        torch.save(content, file)


def load_state(path: Path, who: Mapping[str, Any]) -> dict[str, Any]:
    """A run's state, on the CPU.

    Raises:
        ValueError: a file that is damaged or foreign, or the state of another run, with what differs.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"out: {path} is damaged, or no checkpoint; remove it to begin again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"out: {path} is no checkpoint of a training run; give another folder")
    if content.get("version") != VERSION:
        raise ValueError(
            f"out: {path} was written by another version of hamlet (format {content.get('version')}, this one reads "
            f"{VERSION}), so the run cannot go on; give another folder, or load its model.pt"
        )
    check_same(path, content["identity"], who)
    state: dict[str, Any] = content["state"]
    return state


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError where a file is of a run that would have gone otherwise, with what differs."""
    differing = [
        f"{name.removeprefix('recipe.')}={before.get(name)!r} (now {now.get(name)!r})"
        for name in sorted((before.keys() | now.keys()) - HARMLESS)
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(f"out: {path} is of a run with {', '.join(differing)}; give the same, or another folder")


def _flat(plain: Any, name: str = "") -> dict[str, Any]:
    if isinstance(plain, list) and any(isinstance(item, dict) for item in plain):
        plain = dict(enumerate(plain))
    if not isinstance(plain, dict) or not plain:
        return {name: plain}
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat

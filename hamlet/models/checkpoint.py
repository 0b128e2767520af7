"""Models on disk: name, configuration and weights in one file that is either whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from hamlet.files import replacing
from hamlet.models.model import Model
from hamlet.models.registry import FAMILIES, build, make_config, registered, split

FORMAT = "hamlet-checkpoint"
VERSION = 1


def save_checkpoint(path: str | Path, model: Model, **extra: Any) -> None:
    """Write a model to a file, which takes its place in one step: a killed process leaves the file that was there.

    Args:
        path: the file; its folder is made where it is missing.
        extra: anything else to keep, made of tensors, numbers, text, lists and dicts, which is all that
            :func:`load_checkpoint` will read.

    Example:
        >>> import tempfile
        >>> from hamlet import create_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(Path(folder, "model.pt"), create_model("gem_resnet18", descriptor_dim=8), steps=10)
        ...     model, extra = load_checkpoint(Path(folder, "model.pt"))
        >>> model.name, model.descriptor_dim, extra
        ('gem_resnet18', 8, {'steps': 10})
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.name,
        "config": dataclasses.asdict(model.config),
        "state_dict": model.state_dict(),
        "extra": extra,
    }
    with replacing(path) as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """The model of a checkpoint, on the CPU, in training mode, and what else was kept.

    Nothing but tensors and plain data is unpickled, so a file from elsewhere can be looked at.

    Raises:
        ValueError: a file that is damaged, foreign, of a later version, or whose weights do not fit its configuration.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is damaged, or no checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"checkpoint: {path} was not written by save_checkpoint")
    if content.get("version") != VERSION:
        raise ValueError(f"checkpoint: {path} has version {content.get('version')}, this hamlet reads {VERSION}")
    try:
        name = registered(str(content["model"]))
        model = build(name, make_config(FAMILIES[split(name)[0]][1], content["config"]))
        model.load_state_dict(content["state_dict"])
        return model, content["extra"]
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} does not fit this version ({_first_line(error)})") from error


def fingerprint(model: Model) -> str:
    """Sixteen hexadecimal digits that tell models apart by configuration and weights, wherever they are stored.

    Example:
        >>> from hamlet import create_model
        >>> model = create_model("gem_resnet18", descriptor_dim=8)
        >>> before = fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model.power.add_(0.5)
        >>> before == fingerprint(model), len(before)
        (False, 16)
    """
    digest = hashlib.sha256(json.dumps([model.name, dataclasses.asdict(model.config)], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__

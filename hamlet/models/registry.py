"""Models by name, as timm's users expect them."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from pathlib import Path
from typing import Any

import timm

from hamlet.models.delg import Delg, DelgConfig
from hamlet.models.dolg import Dolg, DolgConfig
from hamlet.models.gem import Gem, GemConfig
from hamlet.models.hamlet import Hamlet, HamletConfig
from hamlet.models.mace_like import MaceLike, MaceLikeConfig
from hamlet.models.model import Model, ModelConfig
from hamlet.models.rmac import Rmac, RmacConfig
from hamlet.models.solar import Solar, SolarConfig
from hamlet.models.spca import Spca, SpcaConfig
from hamlet.models.spoc import Spoc, SpocConfig
from hamlet.models.token import Token, TokenConfig
from hamlet.models.ultron import Ultron, UltronConfig
from hamlet.settings import from_plain

FAMILIES: dict[str, tuple[type[Model], type[ModelConfig]]] = {
    "hamlet": (Hamlet, HamletConfig),
    "gem": (Gem, GemConfig),
    "spoc": (Spoc, SpocConfig),
    "rmac": (Rmac, RmacConfig),
    "delg": (Delg, DelgConfig),
    "solar": (Solar, SolarConfig),
    "dolg": (Dolg, DolgConfig),
    "token": (Token, TokenConfig),
    "spca": (Spca, SpcaConfig),
    "ultron": (Ultron, UltronConfig),
    "mace_like": (MaceLike, MaceLikeConfig),
}
"""The methods, from HAMLET over the plain descriptors to those that it is compared with."""

UNAVAILABLE = {"dscf": "no definition of DSCF is public, so there is nothing to build"}
"""Methods that the comparison names and that cannot be had, and why."""

BACKBONES = {
    "resnet18": "resnet18",
    "mobilenetv3_large": "mobilenetv3_large_100",
    "mobilenetv3_small": "mobilenetv3_small_100",
}
"""Backbones that the registered models have, under the names they go by here and in timm, which are one."""

LEAN: dict[str, dict[str, Any]] = {
    "hamlet_mobilenetv3_large": {"width": 96, "heads": 3, "window": 32.0},
    "hamlet_mobilenetv3_small": {"width": 48, "heads": 3},
}
"""What the registered models set otherwise than their configuration's defaults: small backbones get small parts."""


def list_models(filter: str = "") -> list[str]:
    """Names of the registered models, those that contain ``filter``, which may hold ``*`` and ``?``.

    Other backbones that timm builds with ``features_only`` have names too, such as ``gem_convnext_atto``: all that have
    the levels which a method takes (DOLG two, ULTRON four), and channels that its heads divide (SpCa's 8).
    :data:`UNAVAILABLE` holds the methods that are known by name alone.

    Example:
        >>> list_models("hamlet")
        ['hamlet_mobilenetv3_large', 'hamlet_mobilenetv3_small', 'hamlet_resnet18']
    """
    names = (f"{family}_{backbone}" for family in FAMILIES for backbone in BACKBONES)
    return sorted(fnmatch.filter(names, f"*{filter}*"))


def create_model(
    name: str,
    *,
    descriptor_dim: int | None = None,
    pretrained: bool | str | Path = False,
    checkpoint: str | Path | None = None,
    **overrides: Any,
) -> Model:
    """Create a model by name, in training mode, on the CPU.

    Args:
        name: METHOD_BACKBONE, such as ``hamlet_resnet18``, or ``gem_resnet18`` for the plain baseline. The backbone is
            one of the registered models' (:func:`list_models`) or any timm model's name; a model that is registered
            has the name that it is registered by, whichever it was asked for by.
        descriptor_dim: length of the descriptors; default 512, or the checkpoint's.
        pretrained: weights of the backbone: True fetches timm's, a path reads a local file.
        checkpoint: weights of the whole model, written by :func:`hamlet.models.save_checkpoint`, and its configuration;
            it must agree with whatever is asked for here.
        overrides: other fields of the method's configuration, such as ``acsa=False`` of :class:`HamletConfig`.

    Returns:
        A module: images -> descriptors; see :meth:`hamlet.models.model.Model.forward`. It has ``name``, ``config``
        and ``descriptor_dim``.

    Raises:
        ValueError: an unknown name or override, with what there is; a value that does not fit; a checkpoint that
            cannot be read, or of another model or configuration.
        NotImplementedError: a method that cannot be had (:data:`UNAVAILABLE`), with the reason.

    Example:
        >>> import torch
        >>> model = create_model("hamlet_mobilenetv3_small", descriptor_dim=128).eval()
        >>> tuple(model(torch.rand(1, 3, 64, 64)).shape)
        (1, 128)
    """
    asked = overrides if descriptor_dim is None else {"descriptor_dim": descriptor_dim, **overrides}
    name = registered(name)
    config = _config(name, asked)
    if checkpoint is None:
        return build(name, config, pretrained)
    from hamlet.models.checkpoint import load_checkpoint

    if pretrained:
        raise ValueError("pretrained: a checkpoint already holds the backbone's weights; give one of the two")
    model, _ = load_checkpoint(checkpoint)
    if model.name != name:
        raise ValueError(f"checkpoint: {checkpoint} holds {model.name}, expected {name}")
    found, wanted = dataclasses.asdict(model.config), dataclasses.asdict(config)
    if differing := [key for key in asked if found[key] != wanted[key]]:
        told = ", ".join(f"{key}={found[key]!r} (asked for: {wanted[key]!r})" for key in differing)
        raise ValueError(f"checkpoint: {checkpoint} was made with {told}")
    return model


def build(name: str, config: ModelConfig, pretrained: bool | str | Path = False) -> Model:
    """The model of a checked name and its configuration."""
    model = FAMILIES[split(name)[0]][0](config, pretrained=pretrained)  # type: ignore[call-arg]
    model.name = name
    return model


def split(name: str) -> tuple[str, str]:
    """A model's method and timm's name of its backbone.

    Raises:
        ValueError: there is no such method or backbone, with what there is.
        NotImplementedError: a method that cannot be had, with the reason.

    Example:
        >>> split("mace_like_mobilenetv3_small")
        ('mace_like', 'mobilenetv3_small_100')
    """
    check_available(name)
    family = next((family for family in FAMILIES if name.startswith(f"{family}_")), "")
    short = name.removeprefix(f"{family}_")
    backbone = BACKBONES.get(short, short)
    if not family or not timm.is_model(backbone):
        near = difflib.get_close_matches(name, list_models(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"name: got {name!r}{hint}, expected METHOD_BACKBONE with a method of {', '.join(FAMILIES)}, and a "
            f"backbone of {', '.join(BACKBONES)} or any timm model; not available: {unavailable()}"
        )
    return family, backbone


def registered(name: str) -> str:
    """A model's name with its backbone's name here, where it has one, in place of timm's.

    Raises:
        ValueError, NotImplementedError: as of :func:`split`.

    Example:
        >>> registered("gem_mobilenetv3_small_100"), registered("gem_resnet50")
        ('gem_mobilenetv3_small', 'gem_resnet50')
    """
    family, backbone = split(name)
    return f"{family}_{next((short for short, full in BACKBONES.items() if full == backbone), backbone)}"


def unavailable() -> str:
    """The methods that cannot be had, each with the reason, as an error's words."""
    return ", ".join(f"{family} ({reason})" for family, reason in UNAVAILABLE.items())


def check_available(name: str) -> None:
    """NotImplementedError with the reason for a method, or a model of it, that cannot be had."""
    for family, reason in UNAVAILABLE.items():
        if name == family or name.startswith(f"{family}_"):
            raise NotImplementedError(f"{family}: not available: {reason}")


def _config(name: str, settings: dict[str, Any]) -> ModelConfig:
    family, backbone = split(name)
    kind = FAMILIES[family][1]
    known = [field.name for field in dataclasses.fields(kind) if field.name != "backbone"]
    if unknown := sorted(settings.keys() - set(known)):
        raise ValueError(f"overrides: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    return make_config(kind, {"backbone": backbone, **LEAN.get(name, {}), **settings})


def make_config(kind: type[ModelConfig], settings: dict[str, Any]) -> ModelConfig:
    """A configuration from plain data, where tuples may have become lists; ValueError names what does not fit."""
    return from_plain(kind, settings)

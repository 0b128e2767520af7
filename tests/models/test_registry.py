from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hamlet
from hamlet.models import fingerprint, load_checkpoint, save_checkpoint


def test_lists_the_registered_models() -> None:
    backbones = ("resnet18", "mobilenetv3_large", "mobilenetv3_small")
    methods = ("hamlet", "gem", "spoc", "rmac", "delg", "solar", "dolg", "token", "spca", "ultron", "mace_like")
    assert set(hamlet.list_models()) == {f"{method}_{b}" for method in methods for b in backbones}
    assert hamlet.list_models("gem_*v3*") == ["gem_mobilenetv3_large", "gem_mobilenetv3_small"]
    assert len(hamlet.list_models("resnet")) == len(methods)
    assert hamlet.list_models("nothing") == []


@pytest.mark.parametrize("name", hamlet.list_models())
def test_every_listed_model_is_created_with_its_name(name: str) -> None:
    model = hamlet.create_model(name, descriptor_dim=40)
    assert model.name == name
    assert model.descriptor_dim == model.config.descriptor_dim == 40
    assert model.training
    assert type(model.config).__name__ == f"{type(model).__name__}Config"
    assert type(model).__name__.lower() == name.removesuffix(f"_{name.split('_', 1)[1]}").replace("mace", "macelike")


def test_overrides_reach_the_frozen_configuration() -> None:
    model = hamlet.create_model("hamlet_mobilenetv3_small", width=32, heads=4, levels=[-2, -1], acsa=False)
    config = dataclasses.asdict(model.config)
    assert config["backbone"] == "mobilenetv3_small_100"
    assert (config["width"], config["levels"], config["acsa"], config["descriptor_dim"]) == (32, (-2, -1), False, 512)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.descriptor_dim = 3  # type: ignore[misc]


def test_a_registered_model_is_one_under_both_names_of_its_backbone(tmp_path: Path) -> None:
    here, timms = (hamlet.create_model(f"hamlet_mobilenetv3_{size}") for size in ("small", "small_100"))
    assert timms.name == here.name == "hamlet_mobilenetv3_small"
    assert timms.config == here.config
    assert here.config.width == 48  # type: ignore[attr-defined]
    save_checkpoint(tmp_path / "model.pt", here)
    again = hamlet.create_model("hamlet_mobilenetv3_small_100", checkpoint=tmp_path / "model.pt")
    assert fingerprint(again) == fingerprint(here)
    # A file that an earlier version wrote under timm's name.
    here.name = "hamlet_mobilenetv3_small_100"
    save_checkpoint(tmp_path / "model.pt", here)
    assert load_checkpoint(tmp_path / "model.pt")[0].name == "hamlet_mobilenetv3_small"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hamlet_resnet19", {}, r"name: got 'hamlet_resnet19' \(did you mean hamlet_resnet18\?\), .*resnet18"),
        (
            "resnet18",
            {},
            "name: got 'resnet18'.*expected METHOD_BACKBONE with a method of hamlet, gem, .*mobilenetv3_large",
        ),
        ("", {}, "name: got ''"),
        ("gem_resnet19", {}, r"not available: dscf \(no definition of DSCF is public, so there is nothing to build\)"),
        ("hamlet_resnet18", {"widht": 3}, "overrides: got widht, expected some of .*width"),
        ("hamlet_resnet18", {"backbone": "resnet50"}, "overrides: got backbone"),
        ("gem_resnet18", {"width": 3}, "overrides: got width, expected some of descriptor_dim, power"),
        ("hamlet_resnet18", {"heads": 5}, "heads: got 5"),
        ("hamlet_resnet18", {"levels": (0, 17)}, "levels: got"),
        ("hamlet_resnet18", {"descriptor_dim": 0}, "descriptor_dim: got 0"),
        ("gem_resnet18", {"descriptor_dim": 0}, "descriptor_dim: got 0"),
        ("hamlet_resnet18", {"window": -1.0}, "window: got -1.0"),
        ("hamlet_resnet18", {"levels": ()}, "levels: got"),
    ],
)
def test_refuses_what_does_not_exist_or_fit(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hamlet.create_model(name, **settings)


def test_importing_the_operators_imports_nothing_of_the_model() -> None:
    code = (
        "import sys, hamlet.ops; "
        "print([m for m in ('timm', 'faiss', 'PIL', 'torchvision', 'hamlet.nn', 'hamlet.models') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_package_has_a_version_and_no_other_attributes() -> None:
    assert hamlet.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hamlet.nothing

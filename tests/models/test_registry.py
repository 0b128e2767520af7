from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

import hamlet


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

"""What all methods have in common: padding, gradients, checkpoints, maps. Each method's formula has its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hamlet.models import Model, create_model, fingerprint, load_checkpoint, save_checkpoint
from hamlet.models.registry import FAMILIES, UNAVAILABLE

METHODS = [family for family in FAMILIES if family not in {"hamlet", "gem"}]
SIZES = [(97, 131), (64, 33), (131, 97), (97, 131)]


def make(family: str, backbone: str = "mobilenetv3_small", **overrides: Any) -> Model:
    torch.manual_seed(0)
    model = create_model(f"{family}_{backbone}", descriptor_dim=24, **overrides)
    # What begins at zero hides what stands behind it.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("hfe.") and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def images(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@torch.no_grad()
@pytest.mark.parametrize("family", METHODS)
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_large", "vit_tiny_patch16_224"])
def test_images_of_several_sizes_are_described_as_if_each_came_alone(family: str, backbone: str) -> None:
    model = make(family, backbone)
    together, maps = model(images(), return_maps=True)
    alone = torch.cat([model(image[None]) for image in images()])
    assert together.shape == (4, 24)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    assert (together[0] - together[3]).abs().max() > 1e-4
    torch.testing.assert_close(maps.pooling.sum((1, 2)), torch.ones(4))
    height, width = maps.pooling_extent[1].tolist()
    torch.testing.assert_close(maps.pooling[1, :height, :width].sum(), torch.tensor(1.0))
    assert torch.equal(model(images()), together)


@pytest.mark.parametrize("family", METHODS)
def test_the_padding_is_never_read_forward_or_backward(family: str) -> None:
    model = make(family).train()
    model.hfe.eval()
    with torch.no_grad():
        features, extents = model.forward_features(images())
    assert extents is not None
    found = []
    for filling in (0.0, torch.nan):
        filled = [
            level.masked_fill(torch.arange(level.shape[1])[None, :, None, None] >= extent[:, :1, None, None], filling)
            .masked_fill(torch.arange(level.shape[2])[None, None, :, None] >= extent[:, 1:, None, None], filling)
            .requires_grad_()
            for level, extent in zip(features, extents, strict=True)
        ]
        model.zero_grad()
        descriptors, maps = model.forward_head(filled, extents)
        (descriptors[:, 0].sum() + sum(e.square().sum() for e in maps.level_embeddings)).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([descriptors, maps.pooling, *maps.level_embeddings, *gradients, *(f.grad for f in filled)])
    for clean, spoilt in zip(*found, strict=True):
        assert spoilt.isfinite().all()
        torch.testing.assert_close(spoilt, clean)


@pytest.mark.parametrize("family", METHODS)
def test_every_parameter_learns(family: str) -> None:
    torch.manual_seed(0)
    model = create_model(f"{family}_resnet18", descriptor_dim=24)
    batch = torch.stack(images([(97, 131)] * 4))
    targets = torch.nn.functional.normalize(torch.randn(4, 24), dim=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    reached: set[str] = set()
    # What stands before a layer that begins at zero learns from the second step on.
    for _ in range(4):
        optimizer.zero_grad()
        loss = 1 - (model(batch) * targets).sum(1).mean()
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            reached |= {name} if parameter.grad.abs().max() > 0 else set()
        optimizer.step()
    assert losses[-1] < losses[0]
    # timm begins a ResNet's residual branches at zero; what it leaves without gradient is its affair.
    assert {name for name, _ in model.named_parameters() if not name.startswith("hfe.")} <= reached


@torch.no_grad()
@pytest.mark.parametrize("family", METHODS)
def test_a_model_comes_back_from_its_checkpoint(family: str, tmp_path: Path) -> None:
    model = make(family)
    save_checkpoint(tmp_path / "model.pt", model, steps=3)
    loaded, extra = load_checkpoint(tmp_path / "model.pt")
    assert (loaded.name, loaded.config, extra) == (model.name, model.config, {"steps": 3})
    assert fingerprint(loaded) == fingerprint(model)
    batch = torch.stack(images([(64, 96)]))
    assert torch.equal(loaded.eval()(batch), model(batch))
    next(loaded.parameters()).add_(1)
    assert fingerprint(loaded) != fingerprint(model)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("delg", {"power": 0.0}, "power: got 0.0, expected a finite number >= 0.1"),
        ("solar", {"power": float("inf")}, "power: got inf"),
        ("ultron", {"power": float("nan")}, "power: got nan"),
        ("rmac", {"scales": 0}, "scales: got 0"),
        ("spca", {"tokens": 1}, "tokens: got 1"),
        ("spca", {"heads": 7}, "heads: got 7, expected a divisor of the width 576"),
        ("token", {"tokens": 1}, "tokens: got 1"),
        ("token", {"heads": 3}, "heads: got 3"),
        ("token", {"width": 0}, "width: got 0, expected at least 1"),
        ("token", {"refinements": -1}, "refinements: got -1, expected 0 or more"),
        ("dolg", {"dilations": ()}, "dilations: got"),
        ("mace_like", {"dilations": (0,)}, "dilations: got"),
        ("mace_like", {"width": 0}, "width: got 0, expected at least 2"),
        ("mace_like", {"width": 1}, "width: got 1"),
        ("ultron", {"heads": 3}, "heads: got 3"),
        ("ultron", {"width": 0}, "width: got 0, expected at least 1"),
        ("ultron", {"radius": float("inf")}, "radius: got inf, expected a finite number"),
        ("ultron", {"radius": 0.1}, "radius: got 0.1"),
        ("ultron", {"thresholds": (0.6, 0.4)}, "thresholds: got"),
        *((family, {"descriptor_dim": 0}, "descriptor_dim: got 0") for family in METHODS),
    ],
)
def test_refuses_what_does_not_fit(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(f"{family}_mobilenetv3_small", **settings)


@pytest.mark.parametrize(("family", "settings"), [("token", {}), ("gem", {"centre": True})])
def test_what_ends_in_a_batch_normalisation_refuses_to_learn_from_one_picture(
    family: str, settings: dict[str, Any]
) -> None:
    model = make(family, **settings).train()
    with pytest.raises(ValueError, match="features: got a batch of 1 in training mode, expected 2 or more"):
        model(torch.rand(1, 3, 64, 64))
    assert model.eval()(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_a_method_without_a_definition_says_why() -> None:
    assert list(UNAVAILABLE) == ["dscf"]
    for name in ("dscf", "dscf_resnet18"):
        with pytest.raises(NotImplementedError, match="dscf: not available: no definition of DSCF is public"):
            create_model(name)

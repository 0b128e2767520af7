from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hamlet.models import Hamlet, Maps, create_model

SIZES = [(97, 131), (64, 33), (131, 97), (97, 131)]


@pytest.fixture(scope="module")
def model() -> Hamlet:
    return make("hamlet_resnet18")


def make(name: str, **overrides: Any) -> Hamlet:
    torch.manual_seed(0)
    model = create_model(name, descriptor_dim=32, **overrides)
    assert isinstance(model, Hamlet)
    return model.eval()


def images(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenetv3_large", "mobilenetv3_small", "regnetx_002", "convnext_atto", "vit_tiny_patch16_224"],
)
def test_images_of_several_sizes_are_described_as_if_each_came_alone(name: str) -> None:
    model = make(f"hamlet_{name}", choose_dilation=True)
    batch = images()
    together = model(batch)
    alone = torch.cat([model(image[None]) for image in batch])
    assert together.shape == (4, 32)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    # Different pictures, told apart by far more than the tolerance.
    assert (together[0] - together[3]).abs().max() > 1e-3


def test_the_padding_is_never_read_forward_or_backward(model: Hamlet) -> None:
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
        (descriptors[:, 0].sum() + maps.mean_radius + sum(e.square().sum() for e in maps.level_embeddings)).backward()
        gradients = [p.grad.clone() for n, p in model.named_parameters() if p.grad is not None]
        found.append([descriptors, maps.pooling, *maps.level_embeddings, *gradients, *(f.grad for f in filled)])
    assert len(found[0]) > 40
    for clean, spoilt in zip(*found, strict=True):
        assert spoilt.isfinite().all()
        torch.testing.assert_close(spoilt, clean)


@torch.no_grad()
def test_maps_lead_from_the_image_to_its_descriptor(model: Hamlet) -> None:
    batch = images()
    descriptors, maps = model(batch, return_maps=True)
    assert isinstance(maps, Maps)
    assert torch.equal(descriptors, model(batch))
    assert maps.extents is not None
    assert maps.extents[1].tolist() == [[7, 9], [4, 3], [9, 7], [7, 9]]
    assert maps.pooling_extent is maps.extents[1]
    assert maps.pooling.shape == (4, 9, 9)
    torch.testing.assert_close(maps.pooling.sum((1, 2)), torch.ones(4))
    torch.testing.assert_close(maps.pooling[1, :4, :3].sum(), torch.tensor(1.0))
    assert maps.fusion_weights is not None
    torch.testing.assert_close(maps.fusion_weights.sum(-1), torch.ones(4, 9, 9))
    assert [e.shape for e in maps.level_embeddings] == [(4, 128)] * 3
    shares = []
    for i, (h, w) in enumerate([(17, 17), (9, 9), (5, 5)]):
        for j, bound in enumerate((6.0, 3.0, 1.5)):
            radius, gate = maps.radius[i][j], maps.gate[i][j]
            assert radius is not None
            assert gate is not None
            assert radius.shape == gate.shape == (4, h, w, 4)
            assert 0.5 < radius.min() < radius.max() < bound
            valid = [radius[b, : e[0], : e[1]] for b, e in enumerate(maps.extents[i].tolist())]
            shares.append(torch.stack([((r - 0.5) / (bound - 0.5)).mean() for r in valid]).mean())
    torch.testing.assert_close(maps.mean_radius, torch.stack(shares).mean())


@torch.no_grad()
def test_a_batch_of_one_size_has_no_extents_and_is_the_list(model: Hamlet) -> None:
    batch = torch.stack(images([(64, 33)] * 3))
    descriptors, maps = model(batch, return_maps=True)
    assert maps.extents is None
    assert maps.pooling_extent is None
    assert torch.equal(descriptors, model(list(batch)))
    assert torch.equal(descriptors, model(batch))


SWITCHES: list[dict[str, Any]] = [
    {},
    {"acsa": False},
    {"adaptive_radius": False},
    {"gated": False},
    {"cross_scale": False},
    {"cecm": False},
    {"dynamic_kernels": False},
    {"choose_dilation": True},
    {"groups": 16, "dilations": (1, 2)},
    {"hffn": False},
    {"attention_pool": False},
    {"acsa": False, "cecm": False, "hffn": False, "attention_pool": False},
    {"levels": (2, 4), "width": 32, "heads": 2, "window": 32.0},
    {"levels": (-1,)},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_builds_and_every_parameter_learns(switches: dict[str, Any]) -> None:
    model = make("hamlet_mobilenetv3_small", **switches).train()
    assert all(getattr(model.config, name) == value for name, value in switches.items())
    batch = torch.stack(images([(97, 131)] * 3))
    targets = torch.nn.functional.normalize(torch.randn(3, 32), dim=1)
    first = last = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(4):
        optimizer.zero_grad()
        last = float((loss := 1 - (model(batch) * targets).sum(1).mean()).detach())
        loss.backward()
        if step == 0:
            first = last
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                # What timm's initialisation leaves without gradient is timm's affair.
                assert name.startswith("hfe.") or parameter.grad.abs().max() > 0, name
        optimizer.step()
    assert last < first


def test_a_switched_off_part_is_gone() -> None:
    whole = sum(p.numel() for p in make("hamlet_mobilenetv3_small").parameters())
    attention = ("acsa", "adaptive_radius", "gated", "cross_scale")
    for switch in (*attention, "cecm", "dynamic_kernels", "hffn", "attention_pool"):
        assert sum(p.numel() for p in make("hamlet_mobilenetv3_small", **{switch: False}).parameters()) < whole
    _, maps = make("hamlet_mobilenetv3_small", acsa=False)(torch.stack(images([(64, 33)])), return_maps=True)
    assert maps.radius == maps.gate == []
    assert maps.mean_radius == 0


@pytest.mark.parametrize(
    ("name", "share"), [("resnet18", 0.35), ("mobilenetv3_large", 0.60), ("mobilenetv3_small", 1.00)]
)
@torch.no_grad()
def test_what_follows_the_backbone_is_lean(name: str, share: float) -> None:
    model = make(f"hamlet_{name}")
    image = torch.rand(1, 3, 224, 224)
    with FlopCounterMode(display=False) as backbone:
        features, _ = model.forward_features(image)
    with FlopCounterMode(display=False) as head:
        model.forward_head(features)
    counted = {str(op) for op in head.get_flop_counts()["Global"]}
    assert {"hamlet.pyramid_attention", "hamlet.dynamic_conv2d"} <= counted
    assert head.get_total_flops() <= share * backbone.get_total_flops()


def test_deterministic_forward_and_backward(model: Hamlet) -> None:
    runs = []
    for _ in range(2):
        model.zero_grad()
        descriptors = model(images())
        descriptors[:, 0].sum().backward()
        runs.append([descriptors, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@torch.no_grad()
def test_autocast_channels_last_and_double_precision(model: Hamlet) -> None:
    batch = torch.stack(images([(97, 131)] * 2))
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    assert found.dtype == torch.float32
    assert (found * expected).sum(1).min() > 0.99
    last = model(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
    double = make("hamlet_resnet18").double()(batch.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-4)


def test_training_under_autocast_gives_finite_gradients() -> None:
    model = make("hamlet_mobilenetv3_small").train()
    with torch.autocast("cpu", torch.bfloat16):
        descriptors, maps = model(torch.stack(images([(64, 96)] * 2)), return_maps=True)
    (descriptors[:, 0].sum() + maps.mean_radius).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_descriptors_of_a_fresh_model_are_not_all_alike(model: Hamlet) -> None:
    descriptors = model(torch.stack([i * s for i, s in zip(images([(96, 96)] * 4), (1.0, 0.5, 0.2, 0.8), strict=True)]))
    similarity = (descriptors @ descriptors.T)[~torch.eye(4, dtype=torch.bool)]
    assert similarity.min() < 0.98

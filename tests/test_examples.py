"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import nn

from hamlet.ops import use_backend

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(path: Path) -> None:
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True, timeout=120)
    assert "(" in done.stdout


def test_a_dynamic_resnet_begins_as_the_static_one_and_learns_filters_for_each_picture() -> None:
    module = load("dynamic_resnet")
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=5, zero_init_last=False).eval()
    pictures = torch.rand(2, 3, 65, 70)
    with torch.no_grad():
        before = resnet(pictures)
    dynamic = module.make_dynamic(resnet)
    found = dynamic(pictures)
    torch.testing.assert_close(found, before, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3) for each in dynamic.modules())
    found.square().sum().backward()
    layer = dynamic.layer1[0].conv1
    assert layer.banks.grad.abs().max() > 0
    with torch.no_grad():
        layer.banks[1].add_(torch.randn_like(layer.banks[1]))
        layer.choose.weight.copy_(torch.randn(layer.choose.weight.shape))
        # Mixtures by hand, a picture at a time.
        x = torch.rand(2, 64, 9, 11)
        for b in range(2):
            share = layer.choose(x[b].mean((1, 2))).softmax(0)
            weight = sum(share[n] * layer.banks[n] for n in range(4))
            expected = nn.functional.conv2d(x[b : b + 1], weight, padding=1)
            torch.testing.assert_close(layer(x)[b : b + 1], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_convolution_that_pads_otherwise_stays_as_it_is() -> None:
    kept = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, stride=(1, 2)),
    ]
    replaced = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2, stride=2, groups=2)]
    model = nn.Sequential(*kept, *replaced)
    picture = torch.rand(2, 4, 23, 26)
    before = model(picture)
    assert load("dynamic_resnet").make_dynamic(model) is model
    assert [isinstance(each, nn.Conv2d) for each in model] == [True] * len(kept) + [False] * len(replaced)
    torch.testing.assert_close(model(picture), before, rtol=1e-4, atol=1e-5)


def test_levels_of_the_neck_talk_within_their_windows() -> None:
    neck = load("pyramid_neck").PyramidNeck([4, 6], [8, 16], width=8, heads=2, window=16.0)
    fine = torch.randn(1, 4, 12, 12, requires_grad=True)
    coarse = torch.randn(1, 6, 6, 6, requires_grad=True)
    found = neck([fine, coarse])
    assert [tuple(level.shape) for level in found] == [(1, 8, 12, 12), (1, 8, 6, 6)]
    # From a corner: 16 pixels of the image, and the ramp at the window's edge, a pixel of the level that is heard.
    for hearing, level, reach in ((0, coarse, 2), (1, fine, 4)):
        (gradient,) = torch.autograd.grad(found[hearing][0, :, 0, 0].sum(), level, retain_graph=True)
        reached = gradient.abs().sum((0, 1)) > 0
        assert reached[:reach, :reach].all()
        assert not reached[reach:].any()
        assert not reached[:, reach:].any()
    with use_backend("reference"):
        for level, expected in zip(found, neck([fine, coarse]), strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)

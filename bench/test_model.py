"""The whole model on pictures of different sizes: one padded batch beside one picture at a time."""

from __future__ import annotations

import pytest
import torch

from bench.harness import Comparison, compare
from hamlet import create_model

FULL = [(224, 224), (224, 168), (168, 224), (224, 160)]
SMALL = [(64, 64), (64, 48)]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_large"])
def test_inference_of_mixed_sizes(backbone, full, shown, benchmark):
    model = create_model(f"hamlet_{backbone}").eval()
    exact = create_model(f"hamlet_{backbone}").eval()
    exact.load_state_dict(model.state_dict())
    exact.double()
    images = [torch.rand(3, height, width) for height, width in (FULL if full else SMALL)]

    def one_by_one(model, images):
        with torch.no_grad():
            return [torch.cat([model(image[None]) for image in images])]

    def batched():
        with torch.no_grad():
            return [model(images)]

    comparison = Comparison("model inference", f"{backbone}, {len(images)} sizes", operations=0, bytes=0)
    contenders = {
        "HAMLET, one padded batch": lambda: batched,
        "one picture at a time": lambda: lambda: one_by_one(model, images),
    }
    compare(
        benchmark,
        comparison,
        contenders,
        lambda: one_by_one(exact, [image.double() for image in images]),
        rounds=5 if full else 1,
        tolerance=1e-4,
    )
    shown.append(comparison)
    assert all(outcome.problem is None for outcome in comparison.outcomes)

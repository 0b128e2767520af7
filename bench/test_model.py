"""The whole model beside its backbone alone: inference, pictures of different sizes, and a step of training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor, nn

from bench.clock import DEVICE, seconds
from bench.comparison import PEAK, Comparison
from bench.harness import compare
from bench.measure.flops import count
from bench.yardsticks import peak
from hamlet import create_model
from hamlet.ops import use_backend

BACKBONES = pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_large"])
MIXED = [(224, 224), (224, 168), (168, 224), (224, 160)]
SMALL = [(64, 64), (64, 48)]
TOLERANCE = 1e-4
STEP_TOLERANCE = 1e-2
"""Batch normalisation over few pixels multiplies what the precision leaves."""
CLASSES = 100


def make(backbone: str) -> tuple[Any, Any]:
    """The model, and the same in float64."""
    model = create_model(f"hamlet_{backbone}").to(DEVICE)
    return model, copy.deepcopy(model).double()


def without_gradient(run: Callable[[], Any]) -> Callable[[], list[Tensor]]:
    def once() -> list[Tensor]:
        with torch.no_grad():
            return [run()]

    return once


def on_the_reference(run: Callable[[], Any]) -> Callable[[], Any]:
    def once() -> Any:
        with use_backend("reference"):
            return run()

    return once


@BACKBONES
@pytest.mark.parametrize("batch", [1, 8])
def test_inference(backbone, batch, full, judged, benchmark, effort):
    model, exact = (each.eval() for each in make(backbone))
    images = torch.rand(batch, 3, *(MIXED if full else SMALL)[0], device=DEVICE)
    run = without_gradient(lambda: model(images))
    alone = without_gradient(lambda: model.hfe(images)[0][-1])
    comparison = Comparison(
        "model, inference",
        f"{backbone}, B{batch} {images.shape[2]}x{images.shape[3]}",
        operations=count(run),
        items={"images": batch},
    )
    contenders = {"HAMLET": lambda: run, "HAMLET (reference)": lambda: on_the_reference(run)}
    right = without_gradient(lambda: exact(images.double()))
    alike = {PEAK: peak(comparison.operations), "backbone alone": lambda: seconds(alone)}
    judged(compare(benchmark, comparison, contenders, right, effort=effort, tolerance=TOLERANCE, yardsticks=alike))


@pytest.mark.parametrize("backbone", ["resnet18"])
def test_inference_of_mixed_sizes(backbone, full, judged, benchmark, effort):
    model, exact = (each.eval() for each in make(backbone))
    images = [torch.rand(3, *size, device=DEVICE) for size in (MIXED if full else SMALL)]

    size = [max(sides) for sides in zip(*(image.shape[1:] for image in images), strict=True)]
    resized = torch.stack([F.interpolate(image[None], size, mode="bilinear", antialias=True)[0] for image in images])

    def one_by_one(model: nn.Module, images: list[Tensor]) -> Callable[[], list[Tensor]]:
        return without_gradient(lambda: torch.cat([model(image[None]) for image in images]))

    def together(batch: Any) -> Callable[[], list[Tensor]]:
        return without_gradient(lambda: model(batch))

    run, alike = together(images), together(resized)
    singly = one_by_one(model, images)
    comparison = Comparison(
        "model, pictures of different sizes",
        f"{backbone}, {len(images)} sizes",
        operations=count(run),
        items={"images": len(images)},
    )
    contenders = {"HAMLET, one list": lambda: run, "HAMLET (reference)": lambda: on_the_reference(run)}
    right = one_by_one(exact, [image.double() for image in images])
    yardsticks = {
        PEAK: peak(comparison.operations),
        "singly, one picture at a time": lambda: seconds(singly),
        "resized to one size beforehand": lambda: seconds(alike),
    }
    judged(compare(benchmark, comparison, contenders, right, effort=effort, tolerance=TOLERANCE, yardsticks=yardsticks))


@BACKBONES
def test_training_step(backbone, full, judged, benchmark, effort):
    """Forward, margin softmax, backward, and a step of SGD."""
    model, exact = (each.train() for each in make(backbone))
    images = torch.rand(8 if full else 2, 3, *(MIXED if full else SMALL)[0], device=DEVICE)
    labels = torch.arange(len(images), device=DEVICE) % CLASSES
    loss = ArcFaceLoss(CLASSES, model.descriptor_dim).to(DEVICE)
    width = model.hfe.channels[-1]
    head = ArcFaceLoss(CLASSES, width).to(DEVICE)
    alone = copy.deepcopy(model.hfe)
    comparison = Comparison(
        "model, step of training",
        f"{backbone}, B{len(images)} {images.shape[2]}x{images.shape[3]}",
        operations=count(step(copy.deepcopy(model), copy.deepcopy(loss), images, labels)) if full else 0,
        items={"images": len(images)},
    )
    contenders = {
        "HAMLET": lambda: step(copy.deepcopy(model), copy.deepcopy(loss), images, labels),
        "HAMLET (reference)": lambda: on_the_reference(step(copy.deepcopy(model), copy.deepcopy(loss), images, labels)),
    }
    pooled = step(nn.Sequential(alone, Pooled()), head, images, labels)
    judged(
        compare(
            benchmark,
            comparison,
            contenders,
            step(exact, copy.deepcopy(loss).double(), images.double(), labels),
            effort=effort,
            tolerance=STEP_TOLERANCE,
            yardsticks={PEAK: peak(comparison.operations), "backbone alone": lambda: seconds(pooled)},
        )
    )


class Pooled(nn.Module):
    """The mean of the backbone's last map."""

    def forward(self, found: tuple[list[Tensor], Any]) -> Tensor:
        return found[0][-1].mean((1, 2))


def step(model: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], list[Tensor]]:
    """What gives the loss and the gradient of the first parameter, and has changed the model by it."""
    parameters = [*model.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)

    def once() -> list[Tensor]:
        optimizer.zero_grad()
        total = loss(model(images), labels).mean()
        total.backward()
        optimizer.step()
        return [total.detach(), parameters[0].grad]

    return once

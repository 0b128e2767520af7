"""Each classifier against numbers worked out by hand, and the sample of classes against the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hamlet.training.classification import Classifier
from hamlet.training.losses import TargetTable
from hamlet.training.recipe import LossRecipe


def unit(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def made(kind: str, vectors: Tensor, classes: int = 2, **settings: float) -> Classifier:
    recipe = LossRecipe(classifier=kind, **settings)  # type: ignore[arg-type]
    classifier = Classifier(classes=classes, dim=2, recipe=recipe)
    with torch.no_grad():
        classifier.loss.W.copy_(3 * vectors.T)
    return classifier


def test_cosface_takes_the_margin_from_the_cosine() -> None:
    loss = made("cosface", unit(0.0, 90.0), margin=0.2, scale=2.0)
    expected = math.log(1 + math.exp(2 * cos(30) - 2 * (cos(60) - 0.2)))
    assert loss(unit(60.0), torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


def test_subcenter_takes_the_nearest_vector_of_a_class() -> None:
    # Class 0 at 0 and 80 degrees, class 1 at 180 and 130; the sample at 100 is 20 degrees from one of each.
    loss = made("subcenter", unit(0.0, 80.0, 180.0, 120.0), margin=10.0, scale=3.0, sub_centers=2)
    expected = math.log(1 + math.exp(3 * cos(20) - 3 * cos(30)))
    assert loss(unit(100.0), torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


def test_madacos_gives_the_median_sample_its_probability() -> None:
    torch.manual_seed(0)
    classifier = Classifier(classes=50, dim=8, recipe=LossRecipe(classifier="madacos"))
    labels = torch.arange(5)
    vectors = torch.nn.functional.normalize(classifier.loss.W.detach(), dim=0).T[labels]
    descriptors = torch.nn.functional.normalize(vectors + 0.2 * torch.randn(5, 8), dim=1)
    losses = classifier(descriptors, labels)
    own = (descriptors * vectors).sum(1)
    median = int(own.argsort()[2])
    assert losses[median].item() == pytest.approx(-math.log(0.1), rel=1e-3)
    # The scale by hand: a perfect sample would have 1 - 1e-7.
    scale = math.log((1 - 1e-7) * 0.9 / (1e-7 * 0.1)) / (1 - own[median].item())
    assert scale > 32
    cosines = descriptors @ torch.nn.functional.normalize(classifier.loss.W.detach(), dim=0)
    others = [(scale * cosines[median, c]).exp().item() for c in range(50) if c != labels[median]]
    margin = own[median].item() - math.log(sum(others) * 0.1 / 0.9) / scale
    logits = scale * cosines
    logits[range(5), labels] -= scale * margin
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-3, atol=1e-4)


def test_madacos_keeps_its_scale_and_margin_within_bounds() -> None:
    loss = made("madacos", unit(0.0, 90.0))
    # The median cosine is below 0: the scale would be below 32 and the margin negative.
    expected = math.log(1 + math.exp(32 * cos(40) - 32 * cos(130)))
    assert loss(unit(130.0), torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "subcenter", "madacos"])
def test_a_sample_of_classes_is_the_softmax_over_those(kind: str) -> None:
    torch.manual_seed(0)
    recipe = LossRecipe(classifier=kind, margin=0.3, scale=8.0, sampled_classes=4)  # type: ignore[arg-type]
    whole = Classifier(classes=9, dim=3, recipe=recipe)
    few = Classifier(classes=4, dim=3, recipe=LossRecipe(kind, 0.3, 8.0))  # type: ignore[arg-type]
    classes = torch.tensor([1, 4, 5, 8])
    columns = (classes[:, None] * whole.vectors + torch.arange(whole.vectors)).flatten()
    with torch.no_grad():
        few.loss.W.copy_(whole.loss.W[:, columns])
    descriptors, labels = torch.nn.functional.normalize(torch.randn(6, 3), dim=1), torch.tensor([1, 1, 4, 8, 5, 8])
    found = whole(descriptors, labels, classes)
    expected = few(descriptors, torch.searchsorted(classes, labels))
    torch.testing.assert_close(found, expected)
    found.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(whole.loss.W.grad[:, columns], few.loss.W.grad)
    assert whole.loss.W.grad.abs().sum() == pytest.approx(few.loss.W.grad.abs().sum().item(), rel=1e-5)
    # All classes in the sample: as without one.
    torch.testing.assert_close(whole(descriptors, labels, torch.arange(9)), whole(descriptors, labels))


def test_sampled_classes_hold_the_batch_and_change_with_the_step() -> None:
    class Dataset:
        labels = tuple(range(100))

    table = TargetTable(Dataset(), None, torch.device("cpu"), sampled_classes=10, seed=3)
    samples = torch.tensor([97, 3, 3, 50])
    drawn = [table.of(samples, step).classes for step in (0, 0, 1)]
    first, again, other = (each for each in drawn if each is not None)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for classes in (first, other):
        assert len(classes.unique()) == len(classes) == 10
        assert torch.equal(classes, classes.sort().values)
        assert {97, 3, 50} <= set(classes.tolist())
    few = TargetTable(Dataset(), None, torch.device("cpu"), sampled_classes=2).of(samples).classes
    assert few is not None
    assert few.tolist() == [3, 50, 97]


def test_margins_beyond_their_unit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margin: got 28\.6, expected a cosine"):
        LossRecipe(classifier="cosface")


def test_madacos_of_one_class_is_no_loss() -> None:
    loss = made("madacos", unit(0.0), classes=1)
    assert loss(unit(60.0, 20.0), torch.tensor([0, 0])).tolist() == [0.0, 0.0]

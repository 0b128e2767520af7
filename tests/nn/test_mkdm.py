"""MKDM's terms, worked out by hand, and where their gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hamlet.nn.mkdm import MKDM, consistency_loss, feature_loss, output_loss

KL = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
"""KL((1/4, 3/4) || (1/2, 1/2))."""


def identity_mkdm(prototypes: Tensor | None, level_dims: tuple[int, ...] = (), scale: float = 1.0) -> MKDM:
    mkdm = MKDM(2, 2, level_dims=level_dims, prototypes=prototypes, logit_scale=scale)
    with torch.no_grad():
        for projection in (mkdm.projection, *mkdm.level_projections):
            projection.weight.copy_(torch.eye(2))
            projection.bias.zero_()
    return mkdm


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_output_loss_is_the_divergence_times_the_temperature_squared(temperature: float) -> None:
    # Logits of the teacher whose softmax at this temperature is (1/4, 3/4).
    teacher = torch.tensor([[0.0, temperature * math.log(3)], [7.0, 7.0 + temperature * math.log(3)]])
    loss = output_loss(torch.zeros(2, 2), teacher, temperature)
    assert loss.item() == pytest.approx(temperature**2 * KL, rel=1e-5)


def test_output_loss_goes_from_teacher_to_student_and_not_back() -> None:
    a, b = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    backwards = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert output_loss(b, a).item() == pytest.approx(KL, rel=1e-5)
    assert output_loss(a, b).item() == pytest.approx(backwards, rel=1e-5)


def test_feature_loss_is_one_less_the_cosine() -> None:
    student = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 1.0], [0.0, -4.0]])
    assert feature_loss(student, teacher).item() == pytest.approx((1 - math.sqrt(0.5) + 2) / 2, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_formula_whole(alpha: float) -> None:
    # Teacher along the first prototype, student along the second: cosines (1, 0) and (0, 1), so with the scale
    # 2 ln 3 and temperature 2 both softmaxes are (3/4, 1/4), and back to front.
    mkdm = identity_mkdm(torch.eye(2) * 5, scale=2 * math.log(3))
    loss = mkdm(torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]]), alpha=alpha, temperature=2.0)
    divergence = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert loss.item() == pytest.approx(alpha * 4 * divergence + (1 - alpha) * 1.0, rel=1e-5)


@pytest.mark.parametrize("prototypes", [None, torch.eye(2)], ids=["a layer of its own", "prototypes"])
def test_the_teachers_own_logits_take_the_place_of_its_embeddings(prototypes: Tensor | None) -> None:
    # The student's outputs are even, by its own layer or by equal cosines; the teacher's softmax at 2 is (1/4, 3/4).
    mkdm = MKDM(2, 2, prototypes=prototypes, outputs=2, logit_scale=1.0)
    with torch.no_grad():
        mkdm.projection.weight.fill_(1.0)
        mkdm.projection.bias.zero_()
    assert (mkdm.outputs is None) == (prototypes is not None)
    if mkdm.outputs is not None:
        torch.nn.init.zeros_(mkdm.outputs.weight)
        torch.nn.init.constant_(mkdm.outputs.bias, 3.0)
    logits = torch.tensor([[1.0, 1.0 + 2 * math.log(3)]])
    loss = mkdm(torch.ones(1, 2), torch.tensor([[7.0, 0.0]]), alpha=1.0, temperature=2.0, teacher_logits=logits)
    assert loss.item() == pytest.approx(4 * KL, rel=1e-5)


def test_outputs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="outputs: got 3, expected 2, one for each prototype"):
        MKDM(2, 2, prototypes=torch.eye(2), outputs=3)
    with pytest.raises(
        ValueError, match=r"alpha: got 0\.5, expected 0 where the teacher has no text prototypes and no"
    ):
        MKDM(2, 2, outputs=2)(torch.ones(1, 2), torch.ones(1, 2), alpha=0.5)


def test_levels_share_the_feature_term() -> None:
    mkdm = identity_mkdm(None, level_dims=(2,))
    teacher = torch.tensor([[1.0, 0.0]])
    loss = mkdm(torch.tensor([[1.0, 0.0]]), teacher, [torch.tensor([[-1.0, 0.0]])], alpha=0.0)
    assert loss.item() == pytest.approx((0.0 + 2.0) / 2)


def test_gradients_reach_the_student_and_its_projections_and_not_the_teacher() -> None:
    torch.manual_seed(0)
    mkdm = MKDM(6, 4, level_dims=(3,), prototypes=torch.randn(5, 4), logit_scale=10.0)
    descriptors, level = torch.randn(7, 6, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    teacher, captions = torch.randn(7, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = mkdm(descriptors, teacher, [level], alpha=0.5, temperature=3.0)
    (loss + mkdm.consistency(descriptors, captions, torch.arange(7))).backward()
    assert teacher.grad is None
    assert captions.grad is None
    for learnt in (descriptors, level, *mkdm.parameters()):
        assert learnt.grad is not None
        assert learnt.grad.isfinite().all()
        assert learnt.grad.abs().sum() > 0


def test_gradient_is_right() -> None:
    torch.manual_seed(0)
    mkdm = MKDM(3, 4, prototypes=torch.randn(5, 4), logit_scale=3.0).double()
    descriptors, teacher = torch.randn(2, 3, dtype=torch.double, requires_grad=True), torch.randn(2, 4).double()
    assert torch.autograd.gradcheck(lambda x: mkdm(x, teacher, alpha=0.4, temperature=2.0), descriptors)


def test_consistency_of_two_samples() -> None:
    # Cosines 1 and 0 at scale ln 3: each image gives its caption 3/4, and so does each caption its image.
    images = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    loss = consistency_loss(images, torch.eye(2), torch.tensor([4, 9]), math.log(3))
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-5)


def test_consistency_takes_all_views_of_a_sample_for_right() -> None:
    # Two views of one sample, and another: each view gives its two captions 3/7 each, the other image gives its own
    # caption 3/5; the matrix is symmetric, so both directions agree.
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = consistency_loss(images, images, torch.tensor([1, 1, 2]), math.log(3))
    assert loss.item() == pytest.approx(-(2 * math.log(3 / 7) + math.log(3 / 5)) / 3, rel=1e-5)


def test_consistency_leaves_out_samples_without_caption() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 1.0]], requires_grad=True)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    loss = consistency_loss(images, texts, torch.arange(3), math.log(3))
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-5)
    nobody = consistency_loss(images, torch.zeros(3, 2), torch.arange(3), 1.0)
    nobody.backward()
    assert nobody.item() == 0
    assert images.grad is not None
    assert not images.grad.any()


def test_prototypes_stay_out_of_the_weights() -> None:
    names = set(MKDM(3, 4, prototypes=torch.randn(2, 4)).state_dict())
    assert names == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("shape", [(1, 4), (3, 5), (4,)])
def test_prototypes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prototypes: got"):
        MKDM(3, 4, prototypes=torch.ones(shape))


def test_outputs_need_prototypes_and_levels_their_embeddings() -> None:
    mkdm = MKDM(2, 2, level_dims=(3,))
    with pytest.raises(ValueError, match=r"alpha: got 0\.5"):
        mkdm(torch.ones(1, 2), torch.ones(1, 2), [torch.ones(1, 3)], alpha=0.5)
    with pytest.raises(ValueError, match="level_embeddings: got 0, expected 1"):
        mkdm(torch.ones(1, 2), torch.ones(1, 2), alpha=0.0)

"""Each loss against numbers worked out by hand, and their weighted sum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hamlet.models import Maps
from hamlet.training import TeacherCache
from hamlet.training.classification import Classifier
from hamlet.training.losses import Objective, Targets, TargetTable, structure_loss
from hamlet.training.recipe import LossRecipe, StageRecipe


def unit(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def maps_of(levels: list[Tensor], radius: float = 0.0) -> Maps:
    return Maps([], [], None, torch.ones(1), None, None, levels, torch.tensor(radius, requires_grad=True))


def test_margin_softmax_adds_the_margin_at_the_own_class() -> None:
    loss = Classifier(classes=2, dim=2, recipe=LossRecipe(margin=30.0, scale=2.0))
    with torch.no_grad():
        loss.loss.W.copy_(3 * unit(0.0, 90.0).T)
    # Own class at 60 degrees, 90 with the margin; the other at 30.
    expected = math.log(1 + math.exp(2 * math.cos(math.radians(30)) - 2 * math.cos(math.radians(90))))
    each = loss(unit(60.0, 60.0), torch.tensor([0, 1]))
    # Own class at 30 degrees, 60 with the margin; the other at 60: even.
    assert each.tolist() == pytest.approx([expected, math.log(2)], rel=1e-5)


def test_margin_softmax_has_a_gradient_for_each_descriptor_and_class() -> None:
    torch.manual_seed(0)
    loss = Classifier(classes=5, dim=4, recipe=LossRecipe())
    descriptors = torch.nn.functional.normalize(torch.randn(5, 4), dim=1).requires_grad_()
    loss(descriptors, torch.arange(5)).mean().backward()
    assert descriptors.grad is not None
    assert (descriptors.grad.norm(dim=1) > 0).all()
    assert (loss.loss.W.grad.norm(dim=0) > 0).all()


def test_structure_loss_by_hand() -> None:
    # Similarities of the two samples: 1 in the shallow level, 1/2 and 0 in the deeper ones.
    levels = [unit(10.0, 10.0), 4 * unit(0.0, 60.0), unit(0.0, 90.0)]
    # Two of four entries differ: by 1/2 between the first two, by 1/2 between the last two.
    assert structure_loss(levels).item() == pytest.approx((0.125 + 0.125) / 2, rel=1e-5)


def test_structure_loss_moves_the_shallow_level_alone() -> None:
    shallow, deep = unit(0.0, 20.0).requires_grad_(), unit(0.0, 60.0).requires_grad_()
    structure_loss([shallow, deep]).backward()
    assert deep.grad is None
    assert shallow.grad is not None
    # A step down the gradient spreads the two samples, as the deeper level has them.
    moved = shallow.detach() - 0.1 * shallow.grad
    assert torch.cosine_similarity(moved[0], moved[1], dim=0) < math.cos(math.radians(20))


def test_structure_loss_of_one_level_is_nothing() -> None:
    level = unit(0.0, 45.0).requires_grad_()
    structure_loss([level]).backward()
    assert level.grad is not None
    assert not level.grad.any()


STAGE = StageRecipe(
    classification=2.0, distillation=3.0, consistency=5.0, hierarchy=7.0, coarse=11.0, budget=13.0, alpha=0.0
)


def objective(stage: StageRecipe = STAGE, teacher: TeacherCache | None = None) -> Objective:
    return Objective(
        LossRecipe(margin=0.0, scale=1.0),
        [stage],
        descriptor_dim=2,
        level_dims=[2, 2],
        classes=2,
        coarse_classes=[2],
        teacher=teacher,
    )


def test_objective_is_the_weighted_sum_of_the_losses() -> None:
    cache = TeacherCache(("a", "b"), torch.eye(2), captions=torch.eye(2), logit_scale=math.log(3))
    whole = objective(teacher=cache)
    assert whole.mkdm is not None
    with torch.no_grad():
        whole.mkdm.projection.weight.copy_(torch.eye(2))
        whole.mkdm.projection.bias.zero_()
        # Both classes' vectors in one place: a loss of log 2 whatever the descriptor.
        whole.classification.loss.W.fill_(1.0)
        whole.coarse[0].loss.W.fill_(1.0)
    targets = Targets(torch.arange(2), torch.tensor([0, 1]), [torch.tensor([1, 0])], torch.eye(2), torch.eye(2))
    maps = maps_of([unit(0.0, 0.0), unit(0.0, 90.0)], radius=0.25)
    total, terms, each = whole(unit(90.0, 0.0), maps, targets, STAGE, 1.0)
    expected = {
        "classification": math.log(2),
        "distillation": 1.0,  # the descriptors are at right angles to what the teacher says
        "consistency": -math.log(1 / 4),  # each image gives its own caption 1/4, the other's 3/4
        "hierarchy": 0.5,
        "coarse": math.log(2),
        "budget": 0.25,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    weights = (2, 3, 5, 7, 11, 13)
    assert total.item() == pytest.approx(sum(w * x for w, x in zip(weights, expected.values(), strict=True)), rel=1e-5)
    assert each.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-5)
    total.backward()
    assert maps.mean_radius.grad == pytest.approx(13.0)


def test_a_teachers_own_logits_reach_the_loss_part_by_part() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    cache = TeacherCache(("a", "b"), torch.eye(2), logits=logits)
    stage = StageRecipe(classification=0.0, distillation=1.0, alpha=1.0)
    whole = objective(stage, cache)
    assert whole.mkdm is not None
    assert whole.mkdm.outputs is not None
    torch.nn.init.zeros_(whole.mkdm.outputs.weight)
    torch.nn.init.zeros_(whole.mkdm.outputs.bias)

    class Pair:
        labels = (0, 1)

    targets = TargetTable(Pair(), cache, torch.device("cpu")).of(torch.tensor([1, 0]))
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    for part, expected in zip(targets.parts(2), (0.0, divergence), strict=True):
        total, _, _ = whole(unit(0.0), maps_of([unit(0.0)]), part, stage, 1.0)
        assert total.item() == pytest.approx(expected, abs=1e-6)


def test_what_no_stage_weighs_is_not_computed() -> None:
    plain = objective(StageRecipe())
    assert plain.mkdm is None
    assert not plain.coarse
    targets = Targets(torch.arange(2), torch.tensor([0, 1]), [torch.tensor([1, 0])])
    _, terms, _ = plain(unit(0.0, 90.0), maps_of([unit(0.0, 9.0)]), targets, StageRecipe(), 1.0)
    assert list(terms) == ["classification"]


@pytest.mark.parametrize(
    ("stage", "teacher", "message"),
    [
        (StageRecipe(distillation=1.0), None, "distillation has weight, but there is no teacher"),
        (StageRecipe(distillation=1.0), TeacherCache(("a",), torch.ones(1, 2)), "the teacher has no prototypes"),
        (StageRecipe(consistency=1.0), TeacherCache(("a",), torch.ones(1, 2)), "no teacher with captions"),
    ],
)
def test_losses_without_what_they_need_are_refused(
    stage: StageRecipe, teacher: TeacherCache | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective(stage, teacher)


def test_coarse_labels_and_levels_have_to_be_there() -> None:
    with pytest.raises(ValueError, match="no coarser labels"):
        Objective(LossRecipe(), [StageRecipe(coarse=1.0)], descriptor_dim=2, level_dims=[2], classes=2)
    with pytest.raises(ValueError, match="distilled_levels: got 3, expected -1 to 0"):
        Objective(
            replace(LossRecipe(), distilled_levels=(3,)), [StageRecipe()], descriptor_dim=2, level_dims=[2], classes=2
        )


def test_target_table_gathers_rows() -> None:
    class Dataset:
        labels = (4, 5, 6)
        hierarchy = ((1, 1, 0),)

    cache = TeacherCache(("a", "b", "c"), torch.arange(6.0).reshape(3, 2))
    targets = TargetTable(Dataset(), cache, torch.device("cpu")).of(torch.tensor([2, 0]))
    assert targets.labels.tolist() == [6, 4]
    assert targets.coarse[0].tolist() == [0, 1]
    assert targets.teacher is not None
    assert targets.teacher.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert targets.captions is None


def test_a_loss_is_computed_in_the_stages_that_weigh_it_alone() -> None:
    # Without prototypes the second stage, whose alpha is the default, could not follow the teacher's outputs.
    stages = [StageRecipe(until=0.5, distillation=1.0, alpha=0.0), StageRecipe(distillation=0.0, hierarchy=1.0)]
    cache = TeacherCache(("a", "b"), torch.eye(2))
    whole = Objective(LossRecipe(), stages, descriptor_dim=2, level_dims=[], classes=2, teacher=cache)
    targets = Targets(torch.arange(2), torch.tensor([0, 1]), teacher=torch.eye(2))
    found = [whole(unit(0.0, 90.0), maps_of([unit(0.0, 9.0)] * 2), targets, stage, 1.0)[1] for stage in stages]
    assert [list(terms) for terms in found] == [["classification", "distillation"], ["classification", "hierarchy"]]


def test_a_stage_without_classification_still_tells_each_loss() -> None:
    stage = StageRecipe(classification=0.0, hierarchy=1.0)
    whole = Objective(LossRecipe(), [stage], descriptor_dim=2, level_dims=[], classes=2)
    levels = [unit(0.0, 9.0).requires_grad_(), unit(0.0, 90.0)]
    total, terms, each = whole(unit(0.0, 90.0), maps_of(levels), Targets(torch.arange(2), torch.arange(2)), stage, 1.0)
    total.backward()
    assert list(terms) == ["hierarchy"]
    assert each.shape == (2,)
    assert whole.classification.loss.W.grad is None


@pytest.mark.parametrize("kind", ["arcface", "madacos"])
def test_coarse_loss_is_over_the_samples_and_levels_that_have_labels(kind: str) -> None:
    recipe, stage = LossRecipe(classifier=kind, margin=10.0), StageRecipe(coarse=1.0)  # type: ignore[arg-type]
    whole = Objective(recipe, [stage], descriptor_dim=2, level_dims=[], classes=4, coarse_classes=[1, 3])
    assert len(whole.coarse) == 1  # the level of one class tells nothing apart
    labels = torch.arange(4)
    coarse = [torch.zeros(4, dtype=torch.long), torch.tensor([2, -1, 0, -1])]
    descriptors = unit(0.0, 40.0, 90.0, 200.0)
    _, terms, _ = whole(descriptors, maps_of([]), Targets(labels, labels, coarse), stage, 1.0)
    expected = whole.coarse[0](descriptors[[0, 2]], torch.tensor([2, 0])).mean()
    assert terms["coarse"].item() == pytest.approx(expected.item(), rel=1e-5)
    nobody = [coarse[0], torch.full((4,), -1)]
    assert whole(descriptors, maps_of([]), Targets(labels, labels, nobody), stage, 1.0)[1]["coarse"] == 0


def test_captions_of_other_pictures_are_no_captions() -> None:
    cache = TeacherCache(("a", "b"), torch.eye(2), captions=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="no teacher with captions of these pictures"):
        objective(StageRecipe(consistency=1.0), cache)

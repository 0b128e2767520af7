"""The losses of training and their weighted sum (HAMLET architecture, §4.1).

=============== =======================================================================================================
weight          loss
=============== =======================================================================================================
classification  L_cls: a margin softmax over the classes (:mod:`hamlet.training.classification`)
distillation    L_mm: MKDM, features and outputs of the teacher (§3.4)
consistency     L_mm: image-text consistency with the captions
hierarchy       L_hier: adjacent levels keep each other's similarity structure
coarse          L_hier: a margin softmax over each coarser level of the labels
budget          the mean radius of the attention windows, which is what they cost
=============== =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamlet.models import Maps
from hamlet.nn.mkdm import MKDM
from hamlet.training.classification import Classifier
from hamlet.training.gather import gathered
from hamlet.training.recipe import LossRecipe, StageRecipe
from hamlet.training.schedule import chance
from hamlet.training.teacher import TeacherCache

TERMS = ("classification", "distillation", "consistency", "hierarchy", "coarse", "budget")


def structure_loss(level_embeddings: Sequence[Tensor]) -> Tensor:
    """How much the similarities within a batch differ between adjacent levels.

    For each pair of neighbours, the mean squared difference of the two (B, B) matrices of cosine similarities, the
    deeper one taken as given; averaged over the pairs. 0 where there is one level.

    Args:
        level_embeddings: (B, C) for each level, shallow levels first.

    Example:
        >>> shallow, deep = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> structure_loss([shallow, deep]).item()  # two of four entries differ, by 1
        0.5
    """
    if len(level_embeddings) < 2:
        return level_embeddings[0].sum() * 0
    units = [F.normalize(embedding, dim=1) for embedding in level_embeddings]
    similarities = [unit @ unit.T for unit in units]
    pairs = pairwise(similarities)
    return torch.stack([F.mse_loss(shallow, deep.detach()) for shallow, deep in pairs]).mean()


@dataclass(frozen=True)
class Targets:
    """What a batch is to become, one entry or row a sample; built by :class:`TargetTable`.

    Args:
        samples: int (B,), places in the training set.
        labels: int (B,).
        coarse: int (B,) for each coarser level of the labels; -1 where a sample has none.
        teacher, captions: (B, W), or None.
        outputs: (B, P), the teacher's own logits, or None.
        classes: int, sorted: the classes that the softmax is over, those of the batch's labels among them; None: all.
    """

    samples: Tensor
    labels: Tensor
    coarse: Sequence[Tensor] = ()
    teacher: Tensor | None = None
    captions: Tensor | None = None
    outputs: Tensor | None = None
    classes: Tensor | None = None

    def parts(self, count: int) -> list[Targets]:
        """The targets of as many equal parts of the batch."""

        def cut(rows: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * count if rows is None else rows.chunk(count)

        rows = (self.samples, self.labels, self.teacher, self.captions, self.outputs)
        coarse = [level.chunk(count) for level in self.coarse]
        return [
            Targets(samples, labels, [level[part] for level in coarse], teacher, captions, outputs, self.classes)
            for part, (samples, labels, teacher, captions, outputs) in enumerate(zip(*map(cut, rows), strict=True))
        ]


class Objective(nn.Module):
    """L = sum of the weighted losses of a stage; it holds the classes' vectors and the projections to the teacher.

    Args:
        recipe: margins, scale and distilled levels.
        stages: only what some stage gives weight to is built.
        descriptor_dim: length of the descriptors.
        level_dims: channels of the model's level embeddings.
        classes: number of classes; coarse_classes: that of each coarser level of the labels. A level of one class
            tells nothing apart and is left out.
        teacher: needed where a stage weighs distillation or consistency.

    Raises:
        ValueError: a loss that a stage asks for and that the data or the teacher cannot give.
    """

    def __init__(
        self,
        recipe: LossRecipe,
        stages: Sequence[StageRecipe],
        *,
        descriptor_dim: int,
        level_dims: Sequence[int],
        classes: int,
        coarse_classes: Sequence[int] = (),
        teacher: TeacherCache | None = None,
    ) -> None:
        super().__init__()
        used = {name for name in TERMS if any(getattr(stage, name) for stage in stages)}
        levels = {level: count for level, count in enumerate(coarse_classes) if count > 1}
        _check_means(stages, used, levels, teacher)

        self.classification = Classifier(classes, descriptor_dim, recipe)
        whole = replace(recipe, sampled_classes=0)
        self.coarse_levels = tuple(levels) if "coarse" in used else ()
        self.coarse = nn.ModuleList(Classifier(levels[level], descriptor_dim, whole) for level in self.coarse_levels)
        self.distilled = tuple(_level(level, len(level_dims)) for level in recipe.distilled_levels)
        self.mkdm = None
        if teacher is not None and {"distillation", "consistency"} & used:
            self.mkdm = MKDM(
                descriptor_dim,
                teacher.embeddings.shape[1],
                level_dims=[level_dims[level] for level in self.distilled],
                prototypes=teacher.prototypes,
                outputs=0 if teacher.logits is None else teacher.logits.shape[1],
                logit_scale=teacher.logit_scale,
            )

    def forward(
        self, descriptors: Tensor, maps: Maps, targets: Targets, stage: StageRecipe, temperature: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The weighted sum; each loss that the stage weighs, before its weight and detached; and each sample's
        classification loss (B,), whatever its weight, since a curriculum may rank by it."""
        descriptors = descriptors.float()
        levels = [embedding.float() for embedding in maps.level_embeddings]
        terms: dict[str, Tensor] = {}
        with nullcontext() if stage.classification else torch.no_grad():
            each = self.classification(descriptors, targets.labels, targets.classes)
        if stage.classification:
            terms["classification"] = each.mean()
        if stage.distillation and self.mkdm is not None and targets.teacher is not None:
            distilled = [levels[level] for level in self.distilled]
            terms["distillation"] = self.mkdm(
                descriptors,
                targets.teacher,
                distilled,
                alpha=stage.alpha,
                temperature=temperature,
                teacher_logits=targets.outputs,
            )
        if stage.consistency and self.mkdm is not None and targets.captions is not None:
            terms["consistency"] = self.mkdm.consistency(descriptors, targets.captions, targets.samples, gathered)
        if stage.hierarchy:
            terms["hierarchy"] = structure_loss([gathered(level) for level in levels])
        if stage.coarse:
            terms["coarse"] = self._coarse(descriptors, targets)
        if stage.budget:
            terms["budget"] = maps.mean_radius.float()
        total = torch.stack([getattr(stage, name) * loss for name, loss in terms.items()]).sum()
        return total, {name: loss.detach() for name, loss in terms.items()}, each.detach()

    def _coarse(self, descriptors: Tensor, targets: Targets) -> Tensor:
        """The mean over the levels of each one's mean over the samples that have a label of it."""
        losses = []
        for loss, level in zip(self.coarse, self.coarse_levels, strict=True):
            labels = targets.coarse[level]
            everyone = gathered(labels)
            # Processes may differ in how many of their samples have one: as many shares as there are samples make the
            # mean over the processes that of the whole batch.
            share = len(labels) * (everyone >= 0).sum().clamp(min=1) / len(everyone)
            losses.append(loss(descriptors, labels).sum() / share)
        return torch.stack(losses).mean()


class Learner(nn.Module):
    """A model and its objective as one module, so that a distributed wrapper sees every parameter that learns."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, images: Tensor, targets: Targets, stage: StageRecipe, temperature: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        descriptors, maps = self.model(images, return_maps=True)
        with torch.autocast(images.device.type, enabled=False):
            result: tuple[Tensor, dict[str, Tensor], Tensor] = self.objective(
                descriptors, maps, targets, stage, temperature
            )
        return result


class TargetTable:
    """The targets of a training set's samples, on the training device.

    Args:
        dataset: with ``labels`` and, if there are coarser ones, ``hierarchy``.
        teacher: aligned with the dataset, or None.
        sampled_classes: classes of a step's softmax; 0: all. Fewer than the batch's own are made up to those.
        seed: of the classes that are drawn.
    """

    def __init__(
        self, dataset: Any, teacher: TeacherCache | None, device: torch.device, sampled_classes: int = 0, seed: int = 0
    ) -> None:
        def placed(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows.to(device)

        self.labels = torch.as_tensor(dataset.labels, device=device)
        self.coarse = [torch.as_tensor(level, device=device) for level in getattr(dataset, "hierarchy", ())]
        self.teacher = placed(teacher.embeddings if teacher else None)
        self.captions = placed(teacher.captions if teacher else None)
        self.outputs = placed(teacher.logits if teacher else None)
        self.classes, self.sampled, self.seed = int(self.labels.max()) + 1, sampled_classes, seed

    def of(self, samples: Tensor, step: int = 0) -> Targets:
        """The targets of samples, int (B,), at a step."""
        samples = samples.to(self.labels.device)

        def rows(table: Tensor | None) -> Tensor | None:
            return None if table is None else table[samples].float()

        labels = self.labels[samples]
        return Targets(
            samples,
            labels,
            [level[samples] for level in self.coarse],
            rows(self.teacher),
            rows(self.captions),
            rows(self.outputs),
            self._sample(gathered(labels), step) if self.sampled else None,
        )

    def _sample(self, labels: Tensor, step: int) -> Tensor:
        """The batch's classes and others at random, sorted: the same in all processes."""
        own = labels.unique()
        order = np.random.default_rng(chance(self.seed, "classes", step)).permutation(self.classes)
        drawn = torch.from_numpy(order).to(own.device)
        drawn = drawn[~torch.isin(drawn, own)][: max(0, self.sampled - len(own))]
        return torch.cat([own, drawn]).sort().values


def _check_means(
    stages: Sequence[StageRecipe], used: set[str], coarse_levels: Mapping[int, int], teacher: TeacherCache | None
) -> None:
    if "coarse" in used and not coarse_levels:
        raise ValueError("stages: coarse has weight, but the training set has no coarser labels that tell any apart")
    if "distillation" in used and teacher is None:
        raise ValueError("stages: distillation has weight, but there is no teacher (data.teacher)")
    outputs = any(stage.distillation and stage.alpha for stage in stages)
    if outputs and teacher is not None and teacher.prototypes is None and teacher.logits is None:
        raise ValueError("stages: alpha above 0 follows outputs, but the teacher has no prototypes and no logits")
    if "consistency" in used and (teacher is None or teacher.captions is None or not teacher.captions.any()):
        raise ValueError("stages: consistency has weight, but there is no teacher with captions of these pictures")


def _level(level: int, levels: int) -> int:
    if not -levels <= level < levels:
        raise ValueError(f"loss.distilled_levels: got {level}, expected {-levels} to {levels - 1}")
    return level % levels

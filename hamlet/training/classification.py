"""Classifiers that train descriptors: softmaxes over cosines, with a margin at a sample's own class."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, LargeMarginSoftmaxLoss, SubCenterArcFaceLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn

from hamlet.training.gather import gathered
from hamlet.training.recipe import LossRecipe


class MadaCosLoss(LargeMarginSoftmaxLoss):
    """MadaCos: a margin softmax that finds scale and margin in each batch.

    With M the median over the batch of the cosines to the own class, and B the sum of exp(s cos) over the other classes
    of that median sample: s = max(32, log((1 - t)(1 - rho) / (t rho)) / (1 - M)) and
    m = max(0, M - log(B rho / (1 - rho)) / s). So the median sample has the probability rho and one that lies on its
    class's vector 1 - t, as long as neither bound is met. Both follow the batch without a gradient; the logits are
    s (cos - m) for the own class and s cos for the others. The batch is that of all processes; samples without a label
    (-1) have no say in it. With one class alone there is nothing to keep a margin from, and m = 0.

    Args:
        rho: probability of the median sample.
        t: what a perfect sample lacks of the probability 1.

    Example:
        >>> loss = MadaCosLoss(num_classes=3, embedding_size=2, reducer=DoNothingReducer())
        >>> loss(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))["loss"]["losses"].shape
        torch.Size([4])

    Source: Zhu et al., "Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image
    Retrieval" (ICCV 2023), §3.2.
    """

    SMALLEST_SCALE = 32.0

    def __init__(self, num_classes: int, embedding_size: int, rho: float = 0.1, t: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.rho, self.t = rho, t

    def init_margin(self) -> None:
        """There is none to begin with."""

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        self.W.data = self.W.data.to(device=device, dtype=dtype)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, *unused: Any) -> dict[str, Any]:
        cosines = self.get_cosine(embeddings)
        known = labels >= 0
        labels = labels.clamp(min=0)
        own = F.one_hot(labels, self.num_classes).bool()
        scale, margin = self._adapt(cosines.detach(), own, known)
        losses = F.cross_entropy(scale * torch.where(own, cosines - margin, cosines), labels, reduction="none")
        indices = torch.arange(len(losses), device=losses.device)
        return {"loss": {"losses": losses, "indices": indices, "reduction_type": "element"}}

    def _adapt(self, cosines: Tensor, own: Tensor, known: Tensor) -> tuple[float, float]:
        targets = gathered(cosines[own].masked_fill(~known, math.nan))
        median, place = targets.nanmedian(0)
        if cosines.shape[1] == 1 or median.isnan():
            return self.SMALLEST_SCALE, 0.0
        odds = math.log((1 - self.t) * (1 - self.rho) / (self.t * self.rho))
        scale = max(self.SMALLEST_SCALE, odds / max(1 - median.item(), 1e-6))
        others = gathered((scale * cosines).masked_fill(own, -math.inf).logsumexp(1))[place]
        return scale, max(0.0, median.item() - (others.item() + math.log(self.rho / (1 - self.rho))) / scale)


class Classifier(nn.Module):
    """One loss a sample: cross-entropy over scaled cosines to the classes' vectors, with a margin at its own.

    ``loss.classifier`` chooses "arcface" (margin in degrees, on the angle), "cosface" (margin on the cosine),
    "subcenter" (ArcFace with the nearest of several vectors a class) or "madacos" (:class:`MadaCosLoss`).

    Where there are many classes, the softmax can be over a sample of them (``loss.sampled_classes``): those of the
    batch, and others drawn anew each step. All vectors are kept, but logits and the products that make them are only
    for those in use.

    Args:
        classes: how many; labels are 0 to classes - 1.
        dim: length of the descriptors.
        recipe: kind, margin, scale, vectors a class, and classes a step.

    Example:
        >>> Classifier(classes=10, dim=8, recipe=LossRecipe())(torch.randn(4, 8), torch.tensor([0, 3, 3, 9])).shape
        torch.Size([4])

    Source: Deng et al., "ArcFace" (CVPR 2019); Wang et al., "CosFace" (CVPR 2018); Deng et al., "Sub-center ArcFace"
    (ECCV 2020), all as implemented in pytorch-metric-learning; An et al., "Partial FC" (ICCVW 2021) for the sample.
    """

    def __init__(self, classes: int, dim: int, recipe: LossRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.loss = _loss(classes, dim, recipe)
        self.sampled = min(recipe.sampled_classes, classes)
        self.vectors = self.loss.W.shape[1] // classes
        # Without vectors of its own, and no submodule: each step lends it those of the step's classes.
        self._shell = (_loss(1, dim, recipe).to("meta"),) if self.sampled else None

    def forward(self, descriptors: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """The losses (B,).

        Args:
            descriptors: (B, D).
            labels: int (B,); the loss of a sample whose label is -1 is 0.
            classes: int (S,), sorted, those that the softmax is over, each label among them; None: all.
        """
        if classes is None or self._shell is None:
            # The library's losses know no missing labels; ours keeps such samples out of its median.
            taken = labels if isinstance(self.loss, MadaCosLoss) else labels.clamp(min=0)
            whole: Tensor = self.loss(descriptors, taken)["loss"]["losses"]
            return whole.where(labels >= 0, 0)
        (shell,) = self._shell
        shell.num_classes = len(classes)
        columns = (classes[:, None] * self.vectors + torch.arange(self.vectors, device=classes.device)).flatten()
        lent = {"W": self.loss.W.index_select(1, columns)}
        found = torch.func.functional_call(shell, lent, (descriptors, torch.searchsorted(classes, labels)))
        losses: Tensor = found["loss"]["losses"]
        return losses


def _loss(classes: int, dim: int, recipe: LossRecipe) -> Any:
    common = {"num_classes": classes, "embedding_size": dim, "reducer": DoNothingReducer()}
    if recipe.classifier == "madacos":
        return MadaCosLoss(**common)
    common |= {"margin": recipe.margin, "scale": recipe.scale}
    if recipe.classifier == "subcenter":
        return SubCenterArcFaceLoss(**common, sub_centers=recipe.sub_centers)
    return {"arcface": ArcFaceLoss, "cosface": CosFaceLoss}[recipe.classifier](**common)

"""MKDM, the distillation of a multimodal teacher's knowledge (HAMLET architecture, §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def output_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_teacher || p_student), p = softmax(logits / T), averaged over the samples.

    Args:
        student, teacher: logits (B, P). No gradient goes to the teacher.
        temperature: T > 0; T^2 keeps the gradient's size as T grows.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> output_loss(logits, logits + 5).item()
        0.0

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    wanted = F.log_softmax(teacher.detach() / temperature, dim=1)
    given = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(z_teacher, z_student), averaged over the samples; both (B, W). No gradient goes to the teacher.

    Example:
        >>> feature_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).item()
        1.0
    """
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=1)).mean()


def consistency_loss(images: Tensor, texts: Tensor, samples: Tensor, scale: float) -> Tensor:
    """Image-text consistency: each image is to find its own caption in the batch, and each caption its image.

    The mean of both directions' cross-entropies over ``scale`` times the cosine similarities. Views of one sample share
    their caption, and are all right answers, in equal parts. Samples without a caption (a row of zeros) take no part.

    Args:
        images, texts: (B, W). No gradient goes to the texts.
        samples: int (B,), which sample each row is a view of.
        scale: inverse temperature.

    Example:
        >>> towards = torch.eye(2)
        >>> round(consistency_loss(towards, towards, torch.tensor([0, 1]), scale=1.0).item(), 4)  # log(1 + 1 / e)
        0.3133

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).
    """
    captioned = texts.abs().sum(1) > 0
    if not captioned.any():
        return images.sum() * 0
    images, texts, samples = images[captioned], texts[captioned].detach(), samples[captioned]
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    # Both directions have the same targets: being views of one sample is symmetric.
    same = (samples[:, None] == samples).to(logits.dtype)
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


class MKDM(nn.Module):
    """L = alpha T^2 KL(p_teacher || p_student) + (1 - alpha) (1 - cos(z_teacher, z_student)), and image-text agreement.

    z_student is a linear projection of the descriptor to the teacher's width. p is the softmax, at temperature T, of
    ``logit_scale`` times the cosines with the text prototypes (output level). The second term (feature level) is the
    mean over the descriptor and any chosen levels' embeddings, each with its own projection.

    Args:
        descriptor_dim: D.
        teacher_dim: W, the teacher's width.
        level_dims: channels of each level that is distilled.
        prototypes: (P, W), the teacher's text prototypes; without them and ``outputs`` there is no output level, and
            alpha has to be 0.
        outputs: P, where the teacher gives logits of its own: the student's come from the prototypes where there are
            any, and else from a linear layer on the descriptor.
        logit_scale: the teacher's inverse temperature.

    Raises:
        ValueError: prototypes of another width, or fewer than two of them.

    Example:
        >>> mkdm = MKDM(descriptor_dim=8, teacher_dim=16, prototypes=torch.randn(5, 16))
        >>> loss = mkdm(torch.randn(4, 8), torch.randn(4, 16), alpha=0.5, temperature=2.0)
        >>> loss.shape
        torch.Size([])

    Source: HAMLET architecture, §3.4.
    """

    prototypes: Tensor | None

    def __init__(
        self,
        descriptor_dim: int,
        teacher_dim: int,
        *,
        level_dims: Sequence[int] = (),
        prototypes: Tensor | None = None,
        outputs: int = 0,
        logit_scale: float = 100.0,
    ) -> None:
        super().__init__()
        if prototypes is not None and outputs not in (0, len(prototypes)):
            raise ValueError(f"outputs: got {outputs}, expected {len(prototypes)}, one for each prototype")
        if prototypes is not None and (
            prototypes.ndim != 2 or len(prototypes) < 2 or prototypes.shape[1] != teacher_dim
        ):
            raise ValueError(f"prototypes: got {tuple(prototypes.shape)}, expected (2 or more, {teacher_dim})")
        self.projection = nn.Linear(descriptor_dim, teacher_dim)
        self.level_projections = nn.ModuleList(nn.Linear(dim, teacher_dim) for dim in level_dims)
        self.outputs = nn.Linear(descriptor_dim, outputs) if outputs and prototypes is None else None
        self.logit_scale = logit_scale
        unit = None if prototypes is None else F.normalize(prototypes.float(), dim=1)
        self.register_buffer("prototypes", unit, persistent=False)

    def forward(
        self,
        descriptors: Tensor,
        teacher: Tensor,
        level_embeddings: Sequence[Tensor] = (),
        *,
        alpha: float,
        temperature: float = 1.0,
        teacher_logits: Tensor | None = None,
    ) -> Tensor:
        """The distillation loss.

        Args:
            descriptors: (B, D).
            teacher: (B, W), the teacher's embeddings of the same pictures.
            level_embeddings: one (B, C) for each of ``level_dims``.
            alpha: share of the output level, in [0, 1].
            temperature: T of the output level.
            teacher_logits: (B, P), the teacher's own outputs; None: those that its embeddings have with the prototypes.

        Raises:
            ValueError: ``alpha`` above 0 without prototypes and logits, or another number of levels.
        """
        if alpha > 0 and self.prototypes is None and (self.outputs is None or teacher_logits is None):
            raise ValueError(f"alpha: got {alpha}, expected 0 where the teacher has no text prototypes and no logits")
        if len(level_embeddings) != len(self.level_projections):
            raise ValueError(f"level_embeddings: got {len(level_embeddings)}, expected {len(self.level_projections)}")
        projected = self.project(descriptors)
        students = [projected] + [p(x) for p, x in zip(self.level_projections, level_embeddings, strict=True)]
        loss = (1 - alpha) * torch.stack([feature_loss(student, teacher) for student in students]).mean()
        if alpha > 0:
            given = self.outputs(descriptors) if self.outputs is not None else self.logits(projected)
            wanted = self.logits(teacher) if teacher_logits is None else teacher_logits
            loss = loss + alpha * output_loss(given, wanted, temperature)
        return loss

    def consistency(
        self,
        descriptors: Tensor,
        captions: Tensor,
        samples: Tensor,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> Tensor:
        """:func:`consistency_loss` of the projected descriptors (B, D) with the captions' embeddings (B, W).

        ``gather`` may bring in the rows of other processes; the parameters are used before it.
        """
        rows = (self.project(descriptors), captions, samples)
        images, texts, places = map(gather, rows)
        return consistency_loss(images, texts, places, self.logit_scale)

    def project(self, descriptors: Tensor) -> Tensor:
        """z_student: descriptors (B, D) among the teacher's embeddings (B, W), of any length."""
        projected: Tensor = self.projection(descriptors)
        return projected

    def logits(self, embeddings: Tensor) -> Tensor:
        """``logit_scale`` times the cosines of embeddings (B, W) with the prototypes: (B, P)."""
        assert self.prototypes is not None
        return self.logit_scale * F.normalize(embeddings, dim=1) @ self.prototypes.T

"""The optimiser and its schedule, by timm; the average of the weights; and what saves memory in the backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from hamlet.training.recipe import OptimizerRecipe


def make_optimizer(learner: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe over all that learns."""
    return create_optimizer_v2(
        learner, opt=recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, steps: int) -> CosineLRScheduler:
    """A linear warm-up from lr / (warmup + 1), then a cosine; a function of the step alone."""
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - recipe.warmup,
        lr_min=recipe.final * recipe.lr,
        warmup_t=recipe.warmup,
        warmup_lr_init=recipe.lr / (recipe.warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )


def checkpoint_activations(model: Any) -> None:
    """Let every part that timm can checkpoint forget its activations in the forward.

    Raises:
        ValueError: a model without such a part.
    """
    parts = [module for module in model.modules() if hasattr(module, "set_grad_checkpointing")]
    if not parts:
        raise ValueError(f"activation_checkpointing: {model.name} has no part that can compute its activations again")
    for part in parts:
        part.set_grad_checkpointing(True)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """In this block, forwards in training mode leave the running statistics of batch norm as they are.

    Computing activations again would count each batch twice.
    """
    norms = _batch_norms(module)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def statistics_of(module: nn.Module) -> list[Tensor]:
    """The running statistics of batch norm, which a forward in training mode changes."""
    return [buffer for norm in _batch_norms(module) for buffer in norm.buffers()]


def _batch_norms(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]

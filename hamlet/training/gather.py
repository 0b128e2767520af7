"""A batch's rows from all processes, so that losses that compare samples see the whole batch."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as distributed
from torch import Tensor


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes; as they are where there is one process.

    Gradients go back to the process that each row came from, summed over the processes. A loss that every process
    computes from what was gathered has, averaged over the processes as DistributedDataParallel does, the gradient that
    one process with the whole batch would have.

    Args:
        rows: (B, ...), of one shape in all processes.

    Example:
        >>> gathered(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    if not rows.requires_grad:
        found = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, rows.contiguous())
        return torch.cat(found)
    from torch.distributed.nn.functional import all_gather

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.cat(all_gather(rows.contiguous()))

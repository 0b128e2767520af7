"""What one process finds out for all, before they train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState

from hamlet import processes

Result = TypeVar("Result")


def once(function: Callable[[], Result]) -> Result:
    """What a function returns in the first process, in all of them; what it raises there, all raise.

    Example:
        >>> once(lambda: sorted("cab"))
        ['a', 'b', 'c']
    """
    if processes.count() > 1:
        # Training's own group of processes comes first, since on GPUs it is one of NCCL.
        PartialState(cpu=not torch.accelerator.is_available())
    return processes.from_first(function)

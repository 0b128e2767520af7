"""Several processes at one task, as ``torchrun`` and ``accelerate launch`` start them; a single one otherwise.

torch is imported where it is used: the command line knows this file, and its help must not take seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")

# The slowest process may have days of work left when the quickest waits for it; one that died ends its connection.
_PATIENCE = timedelta(days=30)


class LeftToFirst(Exception):
    """Nothing went wrong: what remains of a command is the first process's to do, and this is another one."""


def rank() -> int:
    """Number of this process among its like, from 0."""
    from torch import distributed

    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", 0))


def count() -> int:
    """How many processes there are."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def on_this_host() -> int:
    """How many of the processes share this machine's processors."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def from_first(function: Callable[[], Result]) -> Result:
    """Call a function in the first process; every process returns what it returned, or raises what it raised.

    >>> from_first(lambda: 1 + 1)
    2
    """
    if count() == 1:
        return function()
    from torch import distributed

    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome = [function(), None]
        except Exception as error:
            outcome = [None, error]
    distributed.broadcast_object_list(outcome, src=0, group=_group())
    result: Result
    result, raised = outcome
    if raised is not None:
        raise raised
    return result


def wait_for_all() -> None:
    """Return when every process has come here."""
    from torch import distributed

    if count() > 1:
        distributed.barrier(_group())


def device() -> str:
    """Where this process computes: the GPU of its number on this host, where there are any."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def leave_to_first() -> None:
    """Go on in the first process alone.

    Raises:
        LeftToFirst: in every other one. The command line ends such a process in peace.
    """
    if rank() > 0:
        raise LeftToFirst


def end_group() -> None:
    """End the group of processes, if there is one; to be called when its last common work is done.

    Gloo's threads may have a Python object left to release, and an interpreter that ends meanwhile is aborted: the exit
    code of a run that succeeded would be that of a crash. A group of NCCL is left to the interpreter's end, for it
    waits for every process, and the first may have much to do yet.
    """
    distributed: Any = sys.modules.get("torch.distributed")  # who never imported it is in no group
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
    elif _group.cache_info().currsize:
        distributed.destroy_process_group(_group())
    _group.cache_clear()


@cache
def _group() -> Any:
    from torch import distributed

    # Gloo, though there be GPUs: what is told apart here is small, and NCCL gives up on who waits for long.
    if distributed.is_initialized():
        return distributed.new_group(backend="gloo", timeout=_PATIENCE)
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    return distributed.group.WORLD

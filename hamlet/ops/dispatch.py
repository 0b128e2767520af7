"""Whether a call needs PyTorch's dispatcher, which costs several times what a small call's kernel does."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_exclude_set,
    _dispatch_tls_local_include_set,
)
from torch.autograd import forward_ad

PLAIN = (
    *(DispatchKey.CPU, DispatchKey.CUDA, DispatchKey.AutogradCPU, DispatchKey.AutogradCUDA),
    *(DispatchKey.ADInplaceOrView, DispatchKey.BackendSelect),
)
"""The dispatch keys that lead to the kernel and to nothing else where no gradient is asked for."""

OBSERVED = ~functools.reduce(operator.or_, (DispatchKeySet(key).raw_repr() for key in PLAIN))
"""All others, as the bits of a DispatchKeySet."""


def needed(arguments: Iterable[object]) -> bool:
    """Whether anything but the kernel would see a call of a registered operator with these arguments.

    That is: a gradient, reverse or forward; autocast; a mode, a transform or a trace; a subclass of Tensor, or a tensor
    without data or that is negated when it is read; the profiler, which would miss the operator's name.
    """
    tensors: list[Tensor] = []
    for argument in arguments:
        if argument is None or isinstance(argument, float):
            continue
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, (list, tuple)):
            tensors += [item for item in argument if isinstance(item, Tensor)]
    keys = _dispatch_tls_local_include_set().raw_repr()
    differentiated = torch.is_grad_enabled()
    for tensor in tensors:
        if differentiated and tensor.requires_grad:
            return True
        keys |= _dispatch_keys(tensor).raw_repr()
    return (
        keys & ~_dispatch_tls_local_exclude_set().raw_repr() & OBSERVED != 0
        or torch.overrides.has_torch_function(tensors)
        or forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
    )

"""What of PyTorch a call needs: its dispatcher, which takes longer than a small call's kernel, or autograd alone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence

from torch import Tensor, is_grad_enabled
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_exclude_set,
    _dispatch_tls_local_include_set,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.overrides import has_torch_function

from hamlet.ops.nested import SCALARS

PLAIN = (
    *(DispatchKey.CPU, DispatchKey.CUDA, DispatchKey.AutogradCPU, DispatchKey.AutogradCUDA),
    *(DispatchKey.ADInplaceOrView, DispatchKey.BackendSelect),
)
"""The dispatch keys that lead to the kernel, by way of autograd, and to nothing else."""

OBSERVED = ~functools.reduce(operator.or_, (DispatchKeySet(key).raw_repr() for key in PLAIN))
"""All others, as the bits of a DispatchKeySet."""

AUTOGRAD = DispatchKeySet(DispatchKey.AutogradFunctionality).raw_repr()


def tensors_of(arguments: Iterable[object]) -> list[Tensor]:
    """The tensors among a registered operator's arguments, those in its lists included."""
    tensors: list[Tensor] = []
    for argument in arguments:
        if type(argument) in SCALARS:
            continue
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, (list, tuple)):
            tensors += [item for item in argument if type(item) not in SCALARS and isinstance(item, Tensor)]
    return tensors


def differentiated(tensors: Iterable[Tensor]) -> bool:
    """Whether a call with these tensors is recorded for a gradient (reverse; a forward one needs the dispatcher).

    It is not below autograd, as in the body of a ``torch.library.custom_op``, whatever the gradient mode.
    """
    return (
        is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and _dispatch_tls_local_exclude_set().raw_repr() & AUTOGRAD == 0
    )


def needed(tensors: Sequence[Tensor]) -> bool:
    """Whether anything but autograd and the kernel would see a call of a registered operator with these tensors.

    That is: a forward gradient; autocast; a mode, a transform or a trace; a subclass of Tensor, or a tensor without
    data or that is negated when it is read; the profiler, which would miss the operator's name.
    """
    keys = _dispatch_tls_local_include_set().raw_repr()
    for tensor in tensors:
        keys |= _dispatch_keys(tensor).raw_repr()
    return (
        keys & ~_dispatch_tls_local_exclude_set().raw_repr() & OBSERVED != 0
        or has_torch_function(tensors)
        or forward_ad._current_level >= 0
        or _profiler_enabled()
    )

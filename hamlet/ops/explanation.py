"""What the backends say of a call before it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hamlet.ops import attention, backends, convolution, pyramid

_prepare: dict[str, Callable[..., tuple[Any, ...]]] = {
    "cross_scale_attention": attention.prepare,
    "pyramid_attention": pyramid.prepare,
    "dynamic_conv2d": convolution.prepare,
}

OPERATORS = tuple(_prepare)
"""The names of the operators."""


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, list[str]]:
    """For each backend the reasons why it cannot serve ``op(*args, **kwargs)``; an empty list means that it can.

    A call without ``backend`` takes ``"triton"`` on a GPU and ``"native"`` elsewhere, or ``"reference"`` where that one
    cannot.

    Args:
        op: an operator of this package, or its name.
        args, kwargs: what the operator would be called with.

    Raises:
        ValueError: if ``op`` is no operator; and whatever the operator itself raises for bad arguments.

    Example:
        >>> import torch
        >>> from hamlet.ops import explain
        >>> explain("dynamic_conv2d", torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3), groups=2)["reference"]
        []
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _prepare:
        raise ValueError(f"op: got {name!r}, expected one of {', '.join(map(repr, OPERATORS))}")
    return backends.reasons(name, _prepare[name](*args, **kwargs))


def available_backends(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The backends that can serve ``op(*args, **kwargs)``. Arguments and errors as :func:`explain`.

    Example:
        >>> import torch
        >>> from hamlet.ops import available_backends, dynamic_conv2d
        >>> "reference" in available_backends(dynamic_conv2d, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 3, 3))
        True
    """
    return [name for name, reasons in explain(op, *args, **kwargs).items() if not reasons]

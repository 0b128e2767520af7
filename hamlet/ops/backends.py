"""Which backend runs an operator: one predicate a backend, read by the choice, by the errors and by ``explain``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("hamlet.ops")

NAMES = ("cuda", "triton", "native", "reference")
"""The backends. The automatic choice asks two of them, which depend on the device; the others serve only those who ask
for them by name, as Triton's interpreter does on the CPU."""

# Which of the two GPU backends is faster is for measurements to say; until there are any, "cuda" waits to be asked.
AUTOMATIC_ON_GPU = ("triton", "reference")
AUTOMATIC_ELSEWHERE = ("native", "reference")

# A plain threading.local: torch.compile sees a change of its attributes, which it does not of a ContextVar's value
# before PyTorch 2.12, nor of a class attribute's.
_scope = threading.local()


@dataclass(frozen=True)
class Backend:
    """One implementation of one operator.

    ``forward`` and ``backward`` take the operator's registered arguments, less the backend's name. ``reasons`` takes
    the arguments of ``forward`` and returns why this backend cannot serve them; an empty list means that it can.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    reasons: Callable[..., list[str]]


_backends: dict[str, dict[str, Backend]] = {}


def register(operator: str, backend: Backend) -> None:
    """Make ``backend`` one of those that ``operator`` chooses from."""
    check_name("backend", backend.name)
    _backends.setdefault(operator, {})[backend.name] = backend


def check_name(argument: str, name: object) -> None:
    if name not in NAMES:
        raise ValueError(f"{argument}: got {name!r}, expected one of {', '.join(map(repr, NAMES))}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operator called inside the ``with`` block on one backend; it nests, and holds for this thread alone.

    An operator that the backend cannot serve raises ValueError with the reasons: a backend that was asked for by name
    is never silently replaced. Under ``torch.compile`` another name means another compilation.

    Args:
        name: ``"reference"``, ``"native"``, ``"triton"`` or ``"cuda"``.

    Raises:
        ValueError: for any other name.

    Example:
        >>> import torch
        >>> from hamlet.ops import dynamic_conv2d, use_backend
        >>> with use_backend("reference"):
        ...     dynamic_conv2d(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 3, 3), groups=2)[0, 0, 1, 1]
        tensor(9.)
    """
    check_name("name", name)
    outer = getattr(_scope, "name", None)
    _scope.name = name
    try:
        yield
    finally:
        _scope.name = outer


def requested(backend: str | None) -> str | None:
    """The name asked for by the argument or by ``use_backend``; ``HAMLET_BACKEND`` is read when the operator runs."""
    if backend is not None:
        check_name("backend", backend)
        return backend
    return getattr(_scope, "name", None)


def reasons(operator: str, arguments: Sequence[Any]) -> dict[str, list[str]]:
    """For each backend why it cannot serve ``arguments`` (empty: it can)."""
    return {name: _reasons_of(operator, name, arguments) for name in NAMES}


def choose(operator: str, name: str | None, arguments: Sequence[Any]) -> Backend:
    """The backend asked for, or the first that can serve; ValueError with the reasons when the named one cannot."""
    if name is None and (name := os.environ.get("HAMLET_BACKEND") or None) is not None:
        check_name("HAMLET_BACKEND", name)
    if name is not None:
        if why := _reasons_of(operator, name, arguments):
            raise ValueError(f"backend: got {name!r}, which cannot serve {operator}: {name}: {', '.join(why)}")
        return _backends[operator][name]
    on_gpu = _on_gpu(arguments)
    for candidate in AUTOMATIC_ON_GPU if on_gpu else AUTOMATIC_ELSEWHERE:  # the reference takes anything
        backend = _backends[operator].get(candidate)
        if backend is not None and not backend.reasons(*arguments):
            break
    assert backend is not None
    if on_gpu and backend.name == "reference":
        why_not = {name: why for name, why in reasons(operator, arguments).items() if why}
        _warn_of_reference(operator, "; ".join(f"{name}: {', '.join(why)}" for name, why in why_not.items()))
    return backend


def _reasons_of(operator: str, name: str, arguments: Sequence[Any]) -> list[str]:
    backend = _backends[operator].get(name)
    return [f"this version has no {name} kernel for {operator}"] if backend is None else backend.reasons(*arguments)


def _on_gpu(arguments: Sequence[Any]) -> bool:
    first = arguments[0][0] if isinstance(arguments[0], list | tuple) else arguments[0]
    return bool(first.is_cuda)


@functools.cache
def _warn_of_reference(operator: str, why_not: str) -> None:
    logger.warning("%s runs on the slow reference backend on this GPU (%s)", operator, why_not)

"""HAMLET's backends as contenders."""

from __future__ import annotations

from collections.abc import Sequence


def asked(names: Sequence[str]) -> dict[str, str | None]:
    """The name to show, and what to ask for: nothing for the first, which HAMLET chooses for itself.

    Args:
        names: of the backends that can serve, as ``available_backends`` gives them, the chosen one first.
    """
    return {f"HAMLET ({name})": name if place else None for place, name in enumerate(names)}

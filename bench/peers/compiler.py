"""Peers compiled by PyTorch: what could not be compiled errs, so that nothing else is timed under that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
MOST_VERSIONS = 64
"""Of one function: a layer of three levels calls FlexAttention's on nine pairs of grids, PyTorch keeps eight."""


def compiled(function: Function) -> Function:
    """``function`` as one graph for each shape.

    With ``fullgraph`` a graph break is an error, and so is one version too many, which is otherwise run uncompiled
    without a word.
    """
    return torch.compile(function, dynamic=False, fullgraph=True, recompile_limit=MOST_VERSIONS)

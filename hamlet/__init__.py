"""HAMLET: hierarchical adaptive multimodal embeddings for image retrieval, and the operators they are built on.

What the package offers at its top is imported on first use, so that ``import hamlet.ops`` brings in torch alone.

Example:
    >>> import hamlet
    >>> hamlet.list_models("hamlet_resnet")
    ['hamlet_resnet18']
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hamlet.models import create_model, list_models

    __version__: str

__all__ = ["__version__", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("hamlet")
    if name in __all__:
        return getattr(importlib.import_module("hamlet.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""HAMLET itself and the plain descriptor it is compared with, by name and on disk."""

from hamlet.models.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from hamlet.models.gem import Gem, GemConfig
from hamlet.models.hamlet import Hamlet, HamletConfig
from hamlet.models.maps import Maps
from hamlet.models.registry import Model, create_model, list_models

__all__ = [
    "Gem",
    "GemConfig",
    "Hamlet",
    "HamletConfig",
    "Maps",
    "Model",
    "create_model",
    "fingerprint",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
]

"""HAMLET itself and the descriptors it is compared with, one a file, by name and on disk."""

from hamlet.models.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from hamlet.models.gem import Gem, GemConfig
from hamlet.models.hamlet import Hamlet, HamletConfig
from hamlet.models.maps import Maps
from hamlet.models.model import Model, ModelConfig
from hamlet.models.registry import UNAVAILABLE, create_model, list_models

__all__ = [
    "UNAVAILABLE",
    "Gem",
    "GemConfig",
    "Hamlet",
    "HamletConfig",
    "Maps",
    "Model",
    "ModelConfig",
    "create_model",
    "fingerprint",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
]

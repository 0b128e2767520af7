"""Losses, curriculum, distillation and the loop that trains a model by a recipe (HAMLET architecture, §3.4 and §4)."""

from hamlet.training.curriculum import Curriculum
from hamlet.training.data import FolderDataset, TrainingSet
from hamlet.training.engine import DivergedError
from hamlet.training.log import History
from hamlet.training.loop import train
from hamlet.training.recipe import Recipe, list_recipes, load_recipe
from hamlet.training.run import build_model, train_recipe, training_set
from hamlet.training.teacher import TeacherCache, read_captions
from hamlet.training.termination import Terminated

__all__ = [
    "Curriculum",
    "DivergedError",
    "FolderDataset",
    "History",
    "Recipe",
    "TeacherCache",
    "Terminated",
    "TrainingSet",
    "build_model",
    "list_recipes",
    "load_recipe",
    "read_captions",
    "train",
    "train_recipe",
    "training_set",
]

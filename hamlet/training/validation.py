"""mAP among labelled pictures that are held out: which checkpoint is the best."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from hamlet.images import load_image
from hamlet.retrieval.cost import evaluating
from hamlet.retrieval.metrics import labelled_per_query, mean
from hamlet.training.data import FolderDataset
from hamlet.training.once import once
from hamlet.training.recipe import AugmentRecipe

BATCH = 32


class FolderValidation:
    """Each picture of a folder asks for the others of its class; calling it with a model gives their mAP, 0 to 1.

    A picture's class is its subfolder, as in training. Pictures are shrunk to a longest side, and described as they
    are; processes share the work, and all get the result.

    Args:
        root: the folder, at least two subfolders with pictures.
        longest_side: in pixels.
        progress: show a bar on stderr while the pictures are checked.

    Attributes:
        digest: changes with what is measured.

    Raises:
        ValueError: a folder that is none, or where no class has two pictures.
    """

    def __init__(self, root: str | Path, longest_side: int, *, progress: bool = False) -> None:
        try:
            self.pictures = FolderDataset(root, AugmentRecipe(), progress=progress)
        except ValueError as error:
            raise ValueError(f"data.validation: {str(error).removeprefix('data.root: ')}") from error
        self.labels = np.asarray(self.pictures.labels)
        if np.bincount(self.labels).max() < 2:
            raise ValueError(f"data.validation: {root} has one picture a class, expected two or more in some")
        self.longest_side = longest_side
        self.digest = once(self._digest)

    def __call__(self, model: nn.Module) -> float:
        state: Any = PartialState()
        own = range(state.process_index, len(self.labels), state.num_processes)
        with evaluating(model):
            batches = [own[start : start + BATCH] for start in range(0, len(own), BATCH)]
            rows = [pair for batch in batches for pair in zip(batch, self._describe(model, batch), strict=True)]
        # Places are all different, so rows are never compared.
        found = sorted(gather_object(rows)) if state.num_processes > 1 else rows
        described = np.stack([row for _, row in found])
        return self._map(described)

    def _digest(self) -> str:
        """Sixteen hexadecimal digits that tell apart what is measured: the pictures' content, classes and size."""

        def content(name: str) -> str:
            with open(self.pictures.root / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        with ThreadPoolExecutor() as threads:
            contents = list(threads.map(content, self.pictures.ids))
        told = json.dumps([self.pictures.ids, contents, self.labels.tolist(), self.longest_side])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _describe(self, model: nn.Module, places: range) -> list[Any]:
        device = next(model.parameters()).device
        names = [self.pictures.ids[place] for place in places]
        images = [load_image(self.pictures.root / name, self.longest_side) for name in names]
        on_device: list[Tensor] = [transforms.to_dtype(image.to(device), torch.float32, scale=True) for image in images]
        return list(model(on_device).float().cpu().numpy())

    def _map(self, described: Any) -> float:
        precisions = []
        # A block of queries at a time: the whole matrix of similarities may not fit.
        for start in range(0, len(described), 256):
            queries = np.arange(start, min(start + 256, len(described)))
            ranks = np.argsort(-(described @ described[queries].T), axis=0, kind="stable")
            scores = labelled_per_query(ranks, self.labels, self.labels[queries], (1,), exclude=queries)
            precisions.append(scores["map"])
        return mean(np.concatenate(precisions))

"""CLIP from a local folder as the teacher; needs the extra ``clip`` (``pip install -e '.[clip]'``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from hamlet.images import inside, load_image
from hamlet.training.teacher import TeacherCache

BATCH = 32


class Clip:
    """A CLIP model of Hugging Face's format, read from a folder: weights as safetensors, configuration, tokenizer.

    Args:
        folder: what ``save_pretrained`` of model and processor wrote. Nothing is fetched.

    Raises:
        ImportError: without transformers.
        ValueError: not such a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ImportError("the CLIP teacher needs transformers; pip install -e '.[clip]'") from error
        if not Path(folder, "config.json").is_file():
            raise ValueError(f"clip: {folder} is no folder of a saved CLIP model (it has no config.json)")
        try:
            # Only safetensors: other weight files are pickles.
            self.model: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
            self.processor: Any = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"clip: {folder} cannot be read ({str(error).strip().splitlines()[0]})") from error
        self.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.logit_scale = float(self.model.logit_scale.detach().exp())

    @torch.no_grad()
    def images(self, images: Sequence[Tensor]) -> Tensor:
        """Embeddings (n, W) of pictures, uint8 (3, h, w) of any sizes."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        return self.model.visual_projection(self.model.vision_model(**inputs).pooler_output).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, W) of texts; what is longer than the model reads is cut."""
        inputs = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        pooled = self.model.text_model(**inputs.to(self.model.device)).pooler_output
        return self.model.text_projection(pooled).float().cpu()


def make_cache(
    folder: str | Path,
    root: str | Path,
    ids: Sequence[str],
    *,
    prototypes: Sequence[str] = (),
    captions: dict[str, str] | None = None,
    progress: bool = True,
) -> TeacherCache:
    """What CLIP says of pictures, and of the texts that belong to them.

    Args:
        folder: of the CLIP model; see :class:`Clip`.
        root: folder of the pictures.
        ids: their paths below it, as ``FolderDataset.ids`` has them.
        prototypes: texts such as ``"a photo of a cat"``, one a class.
        captions: picture -> caption; see :func:`hamlet.training.read_captions`.
        progress: show a bar on stderr.
    """
    clip = Clip(folder)
    batches: Iterable[Sequence[str]] = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
    if progress:
        batches = track(batches, "CLIP", console=Console(stderr=True))
    embeddings = torch.cat([clip.images([load_image(inside(root, name)) for name in batch]) for batch in batches])
    described = None
    if captions:
        described = torch.zeros_like(embeddings)
        rows = [row for row, name in enumerate(ids) if name in captions]
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            described[some] = clip.texts([captions[ids[row]] for row in some])
    return TeacherCache(
        ids=tuple(ids),
        embeddings=embeddings,
        prototypes=clip.texts(prototypes) if prototypes else None,
        captions=described,
        logit_scale=clip.logit_scale,
        name=f"CLIP ({Path(folder).name})",
    )

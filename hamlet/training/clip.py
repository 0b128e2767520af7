"""CLIP from a local folder as the teacher; needs the extra ``clip`` (``pip install -e '.[clip]'``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms


class ImageTextModel(Protocol):
    """A teacher with an image and a text tower whose embeddings are compared by cosine."""

    logit_scale: float
    name: str

    def images(self, images: Sequence[Tensor]) -> Tensor:
        """Embeddings (n, W) of pictures, uint8 (3, h, w) of any sizes."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, W) of texts; what is longer than the model reads is cut."""


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
            raise ValueError(f"clip: {folder} is no folder of a saved CLIP model (no config.json in it)")
        try:
            # Only safetensors: other weight files are pickles.
            self.model: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
            self.processor: Any = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"clip: {folder} cannot be read ({str(error).strip().splitlines()[0]})") from error
        self.model.eval().to(_device())
        self.name = f"CLIP ({Path(folder).name})"
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


class OpenClip:
    """A CLIP model of open_clip's format, read from a folder: open_clip_config.json and weights as safetensors.

    Args:
        folder: what ``open_clip.push_to_hf_hub`` publishes, as downloaded. Nothing is fetched.

    Raises:
        ImportError: without open_clip.
        ValueError: not such a folder.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise ImportError("this CLIP teacher needs open_clip; pip install -e '.[clip]'") from error
        if not Path(folder, "open_clip_model.safetensors").is_file():
            raise ValueError(f"clip: {folder} has no open_clip_model.safetensors; other weight files are pickles")
        try:
            config = json.loads(Path(folder, "open_clip_config.json").read_text(encoding="utf-8"))
            if "hf_model_name" in config["model_cfg"]["text_cfg"]:
                raise ValueError("its text tower is one that open_clip fetches, hf_model_name")
            source = f"local-dir:{folder}"
            model, self.preprocess = open_clip.create_model_from_pretrained(source)
            self.tokenizer = open_clip.get_tokenizer(source)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"clip: {folder} cannot be read ({str(error).strip().splitlines()[0]})") from error
        self.model: Any = model.eval().to(_device())
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.name = f"open_clip ({Path(folder).name})"

    @torch.inference_mode()
    def images(self, images: Sequence[Tensor]) -> Tensor:
        """Embeddings (n, W) of pictures, uint8 (3, h, w) of any sizes."""
        batch = torch.stack([self.preprocess(transforms.to_pil_image(image)) for image in images])
        return self.model.encode_image(batch.to(_device())).float().cpu().clone()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, W) of texts; what is longer than the model reads is cut."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(_device())).float().cpu().clone()


def load_clip(folder: str | Path) -> ImageTextModel:
    """The CLIP model in a folder, of either format.

    Raises:
        ValueError: a folder of neither; see :class:`Clip` and :class:`OpenClip`.
    """
    if Path(folder, "open_clip_config.json").is_file():
        return OpenClip(folder)
    return Clip(folder)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

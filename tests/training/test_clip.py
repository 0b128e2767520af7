"""CLIP by the real library's classes: a small one with random weights, saved and read by the real path."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hamlet.training.clip import Clip, make_cache

MARKS = ["<|startoftext|>", "<|endoftext|>"]


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[clip\]'"):
        Clip(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = MARKS + letters + [f"{letter}</w>" for letter in letters]
    (out / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (out / "merges.txt").write_text("#version: 0.2\n")
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**common, "vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**common, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(out)
    tokenizer = transformers.CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(out)
    return out


def test_cache_is_what_the_model_says(folder: Path, tmp_path: Path) -> None:
    import transformers

    for number, name in enumerate(("1.png", "2.png")):
        Image.new("RGB", (30, 20 + number), (90 * number, 10, 200)).save(tmp_path / name)
    cache = make_cache(
        folder,
        tmp_path,
        ["2.png", "1.png"],
        prototypes=["a photo of a cat", "a photo of a dog"],
        captions={"1.png": "a cat"},
        progress=False,
    )
    assert cache.ids == ("2.png", "1.png")
    assert cache.captions is not None
    assert not cache.captions[0].any()
    # The whole model's own path, which knows nothing of ours.
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    pictures = [Image.open(tmp_path / name) for name in cache.ids]
    with torch.no_grad():
        inputs = processor(images=pictures, text=["a photo of a cat", "a photo of a dog"], return_tensors="pt")
        said = model(**inputs)
        caption = model(**processor(images=pictures[:1], text=["a cat"], return_tensors="pt")).text_embeds[0]
    towards = torch.nn.functional.normalize
    torch.testing.assert_close(towards(cache.embeddings, dim=1), said.image_embeds)
    assert cache.prototypes is not None
    torch.testing.assert_close(towards(cache.prototypes, dim=1), said.text_embeds)
    torch.testing.assert_close(towards(cache.captions[1], dim=0), caption)
    torch.testing.assert_close(cache.confidence(), said.logits_per_image.softmax(1).amax(1))


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of a saved CLIP model"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle, which is not read
    with pytest.raises(ValueError, match="cannot be read"):
        Clip(tmp_path)

"""CLIP by the real library's classes: a small one with random weights, saved and read by the real path."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.training import TeacherCache
from hamlet.training.clip import Clip, OpenClip, load_clip
from hamlet.training.teach import teach

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


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    out = tmp_path_factory.mktemp("open_clip")
    size = {"width": 16, "layers": 1}
    config: dict[str, Any] = {
        "embed_dim": 12,
        "vision_cfg": {**size, "image_size": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {**size, "heads": 2, "context_length": 12, "vocab_size": 49408},
    }
    torch.manual_seed(1)
    save_file(open_clip.CLIP(**config).state_dict(), out / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("black_cat/1.png", "black_cat/2.png", "dog/1.png")):
        (out / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20 + number), (90 * number, 10, 200)).save(out / name)
    (out / "dog" / "broken.png").write_bytes(b"no picture")
    return out


IDS = ("black_cat/1.png", "black_cat/2.png", "dog/1.png")
TEXTS = ["a photo of a black cat", "a photo of a dog"]


def test_cache_is_what_the_model_says(folder: Path, photos: Path, tmp_path: Path) -> None:
    import transformers

    captions = {"black_cat/2.png": "a cat"}
    cache, failures = teach(folder, photos, tmp_path / "cache", captions=captions, shard_size=2, progress=False)
    assert cache.ids == IDS
    assert [name for name, _ in failures] == ["dog/broken.png"]
    assert cache.captions is not None
    assert cache.prototypes is not None
    assert cache.captions.any(1).tolist() == [False, True, False]
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2
    # The whole model's own path, which knows nothing of ours.
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    pictures = [Image.open(photos / name) for name in IDS]
    with torch.no_grad():
        said = model(**processor(images=pictures, text=TEXTS, return_tensors="pt", padding=True))
        caption = model(**processor(images=pictures[:1], text=["a cat"], return_tensors="pt")).text_embeds[0]
    half = {"rtol": 0, "atol": 1e-3}
    assert cache.embeddings.dtype == torch.float16
    torch.testing.assert_close(cache.embeddings.float(), said.image_embeds, **half)
    torch.testing.assert_close(cache.captions[1].float(), caption, **half)
    torch.testing.assert_close(cache.prototypes, said.text_embeds)
    torch.testing.assert_close(cache.confidence(), said.logits_per_image.softmax(1).amax(1), **half)
    again = TeacherCache.load(tmp_path / "cache")
    assert again.fingerprint() == cache.fingerprint()


def test_open_clip_says_the_same_through_its_own_path(open_folder: Path, photos: Path, tmp_path: Path) -> None:
    import open_clip

    cache, _ = teach(open_folder, photos, tmp_path / "cache", progress=False)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{open_folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{open_folder}")(TEXTS)
    with torch.no_grad():
        model.eval()
        images = model.encode_image(
            torch.stack([preprocess(Image.open(photos / name)) for name in IDS]), normalize=True
        )
        texts = model.encode_text(tokens, normalize=True)
    assert cache.prototypes is not None
    torch.testing.assert_close(cache.embeddings.float(), images, rtol=0, atol=1e-3)
    torch.testing.assert_close(cache.prototypes, texts)
    assert isinstance(load_clip(open_folder), OpenClip)


class Counting:
    """A teacher that counts what it is asked, and fails when it was asked too often."""

    logit_scale, name = 10.0, "counting"

    def __init__(self, most: int = 100) -> None:
        self.asked, self.most = 0, most

    def images(self, images: Any) -> torch.Tensor:
        self.asked += len(images)
        if self.asked > self.most:
            raise KeyboardInterrupt
        return torch.stack([picture.float().mean((1, 2)) + 1 for picture in images])

    def texts(self, texts: Any) -> torch.Tensor:
        return torch.tensor([[1.0, len(text), text.count("a")] for text in texts])


def test_a_killed_cache_goes_on_and_asks_for_no_picture_twice(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    common: dict[str, Any] = {"shard_size": 1, "progress": False}
    whole, _ = teach(tmp_path / "model", photos, tmp_path / "whole", load=lambda _: Counting(), **common)
    first, second = Counting(most=2), Counting()
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "model", photos, out, load=lambda _: first, **common)
    with pytest.raises(ValueError, match="is not finished"):
        TeacherCache.load(out)
    cut, _ = teach(tmp_path / "model", photos, out, load=lambda _: second, **common)
    assert (first.asked, second.asked) == (3, 1)
    assert cut.fingerprint() == whole.fingerprint()
    teach(tmp_path / "model", photos, out, load=lambda _: Counting(most=0), **common)  # done: nothing is asked


def test_a_cache_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    def make(**settings: Any) -> TeacherCache:
        return teach(tmp_path / "model", photos, tmp_path / "c", load=lambda _: Counting(), progress=False, **settings)[
            0
        ]

    make()
    for settings, what in (({"template": "{}"}, "prototypes"), ({"captions": {"dog/1.png": "x"}}, "captions")):
        with pytest.raises(ValueError, match=f"holds a cache of other {what}"):
            make(**settings)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a cache of other teacher"):
        make()
    for settings, what in (({"template": "cat"}, "template"), ({"prototypes": "captions"}, "no file of captions")):
        with pytest.raises(ValueError, match=what):
            make(**settings)


def test_captions_of_other_pictures_and_damaged_shards_are_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    def make(most: int = 100, **settings: Any) -> Any:
        how: dict[str, Any] = {"load": lambda _: Counting(most), "shard_size": 1, "progress": False, **settings}
        return teach(tmp_path / "model", photos, tmp_path / "c", **how)

    with pytest.raises(ValueError, match=r"captions: none of 1 is of a picture of .*, whose names are as black_cat/1"):
        make(captions={"1.png": "a cat"})
    captions = {"dog/broken.png": "a dog that is not there"}
    with pytest.raises(ValueError, match=r"captions: none is of a picture of .* that can be read"):
        make(captions=captions, prototypes="captions")
    shard = next((tmp_path / "c" / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged"):
        make(captions=captions, prototypes="captions")


def test_texts_without_numbers_leave_the_cache_unfinished(photos: Path, tmp_path: Path) -> None:
    class Silent(Counting):
        def texts(self, texts: Any) -> torch.Tensor:
            return torch.full((len(texts), 3), torch.nan)

    (tmp_path / "model").mkdir()
    captioned: dict[str, Any] = {"captions": {"dog/1.png": "a dog"}, "prototypes": "none"}
    for out, how in (("classes", {}), ("captions", captioned)):
        with pytest.raises(ValueError, match="teacher: its embedding of a text holds NaN"):
            teach(tmp_path / "model", photos, tmp_path / out, load=lambda _: Silent(), progress=False, **how)
        with pytest.raises(ValueError, match="is not finished"):
            TeacherCache.load(tmp_path / out)


def test_a_manifest_that_lacks_something_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    teach(tmp_path / "model", photos, tmp_path / "c", load=lambda _: Counting(), progress=False)
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    lacking = [
        {key: value for key, value in manifest.items() if key != name} for name in ("shards", "failures", "name")
    ]
    for changed in (*lacking, {**manifest, "logit_scale": "ten"}, {**manifest, "shards": []}):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="is damaged"):
            TeacherCache.load(tmp_path / "c")


def test_several_processes_are_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="processes: got 2, expected one"):
        teach(tmp_path, photos, tmp_path / "cache", load=lambda _: Counting(), progress=False)


def test_landmarks_have_no_prototypes_of_folders(tmp_path: Path) -> None:
    line = ["teach", str(tmp_path), str(tmp_path), "--kind", "landmarks", "--out", str(tmp_path / "cache")]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 1
    assert "prototypes: got classes, expected none with landmarks" in shown.stderr
    assert "'none'" in CliRunner().invoke(app, [*line, "--prototypes", "colours"]).stderr


def test_prototypes_from_captions_are_their_means(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    captions = {"black_cat/1.png": "aaa", "black_cat/2.png": "b", "dog/1.png": "cc"}
    cache, _ = teach(
        *(tmp_path / "model", photos, tmp_path / "c"),
        **{"captions": captions, "prototypes": "captions", "load": lambda _: Counting(), "progress": False},  # type: ignore[arg-type]
    )
    towards = torch.nn.functional.normalize
    rows = towards(torch.tensor([[1.0, 3, 3], [1.0, 1, 0], [1.0, 2, 0]]), dim=1)
    expected = towards(torch.stack([rows[:2].mean(0), rows[2]]), dim=1)
    assert cache.prototypes is not None
    torch.testing.assert_close(cache.prototypes, expected, rtol=0, atol=1e-3)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of a saved CLIP model"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")  # a pickle, which is not read
    with pytest.raises(ValueError, match="cannot be read"):
        Clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read"):
        Clip(tmp_path)


def test_open_clip_fetches_nothing(open_folder: Path, tmp_path: Path) -> None:
    config = json.loads((open_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "someone/text-tower"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes((open_folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"cannot be read .*open_clip fetches"):
        load_clip(tmp_path)

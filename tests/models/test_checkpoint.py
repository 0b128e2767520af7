from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from hamlet.models import create_model, fingerprint, load_checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "model.pt"


def small(**overrides: Any) -> Any:
    return create_model("hamlet_mobilenetv3_small", descriptor_dim=16, width=16, heads=2, **overrides)


@torch.no_grad()
def test_a_model_comes_back_as_it_was(path: Path) -> None:
    model = small(dilations=(1, 2), acsa=False).eval()
    save_checkpoint(path, model, epoch=3, history=[{"loss": 0.5}], mean=torch.ones(2))
    loaded, extra = load_checkpoint(path)
    assert loaded.name == model.name
    assert loaded.config == model.config
    assert extra["epoch"] == 3
    assert extra["history"] == [{"loss": 0.5}]
    assert torch.equal(extra["mean"], torch.ones(2))
    image = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.eval()(image), model(image))
    assert fingerprint(loaded) == fingerprint(model)


def test_the_file_is_plain_data_of_the_written_format(path: Path) -> None:
    save_checkpoint(path, small())
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"format", "version", "model", "config", "state_dict", "extra"}
    assert (content["format"], content["version"]) == ("hamlet-checkpoint", 1)
    assert content["model"] == "hamlet_mobilenetv3_small"
    assert content["config"]["width"] == 16


def test_create_model_takes_a_checkpoint_of_the_same_model(path: Path) -> None:
    model = small()
    save_checkpoint(path, model)
    assert fingerprint(small(checkpoint=path)) == fingerprint(model)
    with pytest.raises(ValueError, match=r"holds hamlet_mobilenetv3_small, expected gem_resnet18"):
        create_model("gem_resnet18", checkpoint=path)
    # What is not asked for is the checkpoint's.
    assert fingerprint(create_model("hamlet_mobilenetv3_small", checkpoint=path)) == fingerprint(model)
    with pytest.raises(ValueError, match=r"made with descriptor_dim=16 \(asked for: 512\), width=16 \(asked for: 48\)"):
        create_model("hamlet_mobilenetv3_small", descriptor_dim=512, width=48, checkpoint=path)
    with pytest.raises(ValueError, match="give one of the two"):
        small(checkpoint=path, pretrained=True)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("gem_mobilenetv3_small", descriptor_dim=8)
    save_checkpoint(path, model)
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, model, more=1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


class Malicious:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("hacked",))


def damage(kind: str, path: Path) -> None:
    save_checkpoint(path, create_model("gem_mobilenetv3_small", descriptor_dim=8))
    content = torch.load(path, weights_only=True)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    elif kind == "foreign":
        torch.save(content["state_dict"], path)
    elif kind == "newer":
        torch.save({**content, "version": 2}, path)
    elif kind == "weights":
        torch.save({**content, "state_dict": {"power": torch.tensor(1.0)}}, path)
    elif kind == "field":
        torch.save({**content, "config": {**content["config"], "colour": 1}}, path)
    elif kind == "listed":
        torch.save({**content, "config": [1, 2]}, path)
    elif kind == "numbered":
        torch.save({**content, "model": 3}, path)
    elif kind == "headless":
        torch.save({"format": "hamlet-checkpoint", "version": 1}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("pickle", "damaged"),
        ("foreign", "not written by save_checkpoint"),
        ("newer", "has version 2, this hamlet reads 1"),
        ("weights", "does not fit"),
        ("field", "does not fit"),
        ("listed", "does not fit"),
        ("numbered", "does not fit"),
        ("headless", "does not fit"),
    ],
)
def test_refuses_other_files_in_one_line(
    path: Path, kind: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(kind, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("hacked").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_fingerprints_tell_models_apart() -> None:
    torch.manual_seed(0)
    first = small()
    torch.manual_seed(0)
    assert fingerprint(small()) == fingerprint(first)
    assert fingerprint(small()) != fingerprint(first)
    torch.manual_seed(0)
    assert fingerprint(small(window=32.0)) != fingerprint(first)
    assert len(fingerprint(first)) == 16
    int(fingerprint(first), 16)

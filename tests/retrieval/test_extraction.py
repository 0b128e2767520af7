from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from hamlet.images import ImageList, list_images, load_image
from hamlet.retrieval import Index, shards
from hamlet.retrieval.extraction import SCALES, describe, extract

Pictures = Callable[[Path, int], list[str]]


def alone(model: nn.Module, images: ImageList) -> np.ndarray[Any, Any]:
    """Descriptors one image at a time."""
    with torch.no_grad():
        rows = [model([load_image(images.path(name)).float() / 255]) for name in images.names]
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_gives_the_descriptors_in_order(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, workers: int
) -> None:
    names = write_pictures(tmp_path / "in", 11)
    images = list_images(tmp_path / "in")
    model.train()
    found = extract(model, images, tmp_path / "out", batch_size=3, shard_size=4, workers=workers, progress=False)
    assert model.training
    assert found.ids == names
    assert found.failures == []
    assert isinstance(found.descriptors, np.memmap)
    assert found.descriptors.dtype == np.float32
    assert np.allclose(found.descriptors, alone(model, images), atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["descriptors.npy", "manifest.json"]


def test_broken_images_are_named_and_passed_over(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_pictures(tmp_path / "in", 7)
    (tmp_path / "in/0/000.png").write_bytes(b"")
    (tmp_path / "in/1/[bold]broken.png").write_bytes(b"nothing")
    (tmp_path / "in/2/away.png").symlink_to("/etc/hostname")
    found = extract(model, list_images(tmp_path / "in"), tmp_path / "out", batch_size=2, shard_size=3)
    assert found.ids == names[1:]
    assert found.failures == [
        ("2/away.png", "a link that leaves the folder"),
        ("0/000.png", "the file is empty"),
        ("1/[bold]broken.png", "not an image of a known format"),
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 images have no descriptor" in captured.err
    assert "1/[bold]broken.png: not an image of a known format" in captured.err


def test_all_failures_are_told_and_names_need_not_be_text(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder, 2)
    foreign = os.fsdecode(b"caf\xe9.png")
    (folder / "0" / "000.png").rename(folder / foreign)
    for number in range(30):
        (folder / f"{number}-\udce9.png").write_bytes(b"")
    images = list_images(folder)
    found = extract(model, images, tmp_path / "out", longest_side=32, workers=0)
    assert found.ids == ["1/001.png", foreign]
    told = capfd.readouterr().err
    assert all(f"{number}-\\udce9.png: the file is empty" in told for number in range(30))
    index = Index.build(found.descriptors, found.ids)
    index.save(tmp_path / "a.index")
    assert Index.load(tmp_path / "a.index").ids == found.ids
    assert extract(model, images, tmp_path / "out", longest_side=32).ids == found.ids


def test_nothing_readable(model: nn.Module, tmp_path: Path) -> None:
    images = ImageList(tmp_path, ["a.png", "b.png"])
    found = extract(model, images, tmp_path / "out", progress=False)
    assert found.ids == []
    assert len(found.descriptors) == 0
    assert [name for name, _ in found.failures] == ["a.png", "b.png"]


def test_descriptors_that_are_not_finite_are_failures(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path
) -> None:
    class Poisoned(nn.Module):
        name, config = model.name, model.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            result: torch.Tensor = self.inner(images)
            result[[image.shape[2] == 24 for image in images]] = torch.nan
            return result

    write_pictures(tmp_path / "in", 6)
    found = extract(Poisoned(), list_images(tmp_path / "in"), tmp_path / "out", progress=False)
    assert [name for name, _ in found.failures] == ["0/000.png", "2/005.png"]
    assert len(found.ids) == len(found.descriptors) == 4
    assert np.isfinite(found.descriptors).all()


def test_boxes_and_longest_side(model: nn.Module, write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 2)
    images = list_images(tmp_path / "in")
    found = extract(model, images, tmp_path / "out", boxes=[[2, 3, 20, 15], None], longest_side=9, progress=False)
    with torch.no_grad():
        first = model([load_image(images.path(names[0]), 9, box=[2, 3, 20, 15]).float() / 255])
        second = model([load_image(images.path(names[1]), 9).float() / 255])
    assert np.allclose(found.descriptors, torch.cat([first, second]).numpy(), atol=1e-6)


def test_scales_are_averaged(model: nn.Module, write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 5)
    images = list_images(tmp_path / "in")
    found = extract(model, images, tmp_path / "out", scales=SCALES, batch_size=2, progress=False)
    for name, descriptor in zip(names, found.descriptors, strict=True):
        picture = load_image(images.path(name)).float() / 255
        total = np.zeros(descriptor.shape)
        for scale in (0.7071, 1, 1.4142):
            size = [round(side * scale) for side in picture.shape[1:]]
            resized = nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)
            with torch.no_grad():
                one = model(resized)[0].numpy()
            total += one / np.linalg.norm(one)
        assert np.allclose(descriptor, total / np.linalg.norm(total), atol=1e-5)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["scales"] == [0.7071, 1.0, 1.4142]
    assert not np.allclose(found.descriptors, alone(model, images), atol=1e-5)


def test_each_scale_counts_alike_whatever_its_length() -> None:
    def area(pictures: list[torch.Tensor]) -> torch.Tensor:
        """Long where the picture is large, and of another direction on each side of 4 x 4."""
        return torch.tensor([[0.0, 5.0] if picture.shape[1] > 4 else [0.1, 0.0] for picture in pictures])

    found = describe(area, [torch.rand(3, 4, 4)], (1.0, 2.0))  # type: ignore[arg-type]
    assert torch.allclose(found, torch.tensor([[0.5, 0.5]]).sqrt())
    tiny = describe(area, [torch.rand(3, 1, 1)], (0.1,))  # type: ignore[arg-type]
    assert tiny.tolist() == [[1, 0]]


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_bad_scales(model: nn.Module, tmp_path: Path, scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"scales: got \(.*\), expected at least one, each positive and finite"):
        extract(model, ImageList(tmp_path, ["a.png"]), tmp_path / "out", scales=scales)
    assert not (tmp_path / "out").exists()


def test_a_finished_extraction_is_read_not_repeated(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "in", 4)
    images = list_images(tmp_path / "in")
    first = extract(model, images, tmp_path / "out", progress=False)
    monkeypatch.setattr(type(model), "forward", None)
    # As after a kill between the last rename and the end.
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / "shards" / "0000000000.npz").touch()
    (tmp_path / "out" / "lock").touch()
    again = extract(model, images, tmp_path / "out", progress=False)
    assert again.ids == first.ids
    assert np.array_equal(again.descriptors, first.descriptors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["descriptors.npy", "manifest.json"]


def test_mixing_is_refused(make_model: Callable[[int], nn.Module], write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 4)
    images, out = list_images(tmp_path / "in"), tmp_path / "out"
    extract(make_model(0), images, out, longest_side=100, progress=False)
    before = (out / "descriptors.npy").read_bytes()
    with pytest.raises(ValueError, match=r"holds an extraction of model [0-9a-f]+, not [0-9a-f]+"):
        extract(make_model(1), images, out, longest_side=100, progress=False)
    with pytest.raises(ValueError, match="longest_side 100, not 50"):
        extract(make_model(0), images, out, longest_side=50, progress=False)
    with pytest.raises(ValueError, match=r"scales \[1\.0\], not \[0\.7071, 1\.0, 1\.4142\]"):
        extract(make_model(0), images, out, longest_side=100, scales=SCALES, progress=False)
    with pytest.raises(ValueError, match="other images"):
        extract(make_model(0), ImageList(images.root, names[:3]), out, longest_side=100, progress=False)
    with pytest.raises(ValueError, match="other images"):
        extract(make_model(0), images, out, longest_side=100, boxes=[[0, 0, 9, 9]] * 4, progress=False)
    os.utime(images.path(names[2]), (0, 0))
    with pytest.raises(ValueError, match="changed since"):
        extract(make_model(0), images, out, longest_side=100, progress=False)
    assert (out / "descriptors.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "mine", "expected an empty or new folder"),
        ("manifest.json", "{", "not the manifest"),
        ("manifest.json", '{"format": "another"}', "not the manifest"),
    ],
)
def test_foreign_folders_are_refused(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, name: str, content: str, message: str
) -> None:
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        extract(model, list_images(tmp_path / "in"), tmp_path / "out", progress=False)
    assert (tmp_path / "out" / name).read_text() == content


def test_damaged_result_is_refused(model: nn.Module, write_pictures: Pictures, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 3)
    images = list_images(tmp_path / "in")
    extract(model, images, tmp_path / "out", progress=False)
    content = (tmp_path / "out/descriptors.npy").read_bytes()
    (tmp_path / "out/descriptors.npy").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"descriptors\.npy is missing or damaged"):
        extract(model, images, tmp_path / "out", progress=False)


def test_float16_takes_half_and_rounds(model: nn.Module, write_pictures: Pictures, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 5)
    images = list_images(tmp_path / "in")
    whole = extract(model, images, tmp_path / "whole", shard_size=2, progress=False)
    half = extract(model, images, tmp_path / "half", shard_size=2, dtype="float16", progress=False)
    assert isinstance(half.descriptors, np.memmap)
    assert half.descriptors.dtype == np.float16
    assert np.array_equal(half.descriptors, whole.descriptors.astype(np.float16))
    with pytest.raises(ValueError, match="holds an extraction of dtype float16, not float32"):
        extract(model, images, tmp_path / "half", progress=False)
    with pytest.raises(ValueError, match="dtype: got 'bfloat16', expected one of float32, float16"):
        extract(model, images, tmp_path / "new", dtype="bfloat16", progress=False)


@pytest.mark.parametrize("name", ["longest_side", "batch_size", "shard_size", "workers"])
def test_bad_settings(model: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got -1"):
        extract(model, ImageList(tmp_path, ["a.png"]), tmp_path / "out", **{name: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="boxes: got 2"):
        extract(model, ImageList(tmp_path, ["a.png"]), tmp_path / "out", boxes=[None, None])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("writes", range(7))
def test_stopped_before_any_write_it_resumes(
    model: nn.Module, write_pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Manifest, four shards, descriptors, manifest: seven files, of which `writes` are renamed before the stop."""
    write_pictures(tmp_path / "in", 10)
    (tmp_path / "in/1/bad.png").write_bytes(b"")
    images = list_images(tmp_path / "in")
    whole = extract(model, images, tmp_path / "whole", batch_size=2, shard_size=3, progress=False)
    left = writes

    @contextmanager
    def stopping(path: Path) -> Iterator[BinaryIO]:
        nonlocal left
        with replacing(path) as file:
            yield file
            if left == 0:
                raise KeyboardInterrupt
            left -= 1

    replacing = shards.replacing
    monkeypatch.setattr(shards, "replacing", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(model, images, tmp_path / "out", batch_size=2, shard_size=3, progress=False)
    monkeypatch.undo()
    resumed = extract(model, images, tmp_path / "out", batch_size=2, shard_size=3, progress=False)
    assert resumed.ids == whole.ids
    assert resumed.failures == whole.failures == [("1/bad.png", "the file is empty")]
    assert np.array_equal(resumed.descriptors, whole.descriptors)


def test_what_a_kill_left_half_written_is_removed(model: nn.Module, write_pictures: Pictures, tmp_path: Path) -> None:
    names = write_pictures(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.x1y2.part").write_text("{")
    (tmp_path / "out" / ".descriptors.npy.x1y2.part").write_bytes(bytes(100))
    assert extract(model, list_images(tmp_path / "in"), tmp_path / "out", progress=False).ids == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["descriptors.npy", "manifest.json"]

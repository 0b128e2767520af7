"""A training set from a folder: classes, faults, and views that their seed decides."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hamlet.training import FolderDataset
from hamlet.training.data import augmentation
from hamlet.training.recipe import AugmentRecipe

STILL = AugmentRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), color=0.0, flip=0.0, gray=0.0, blur=0.0, erase=0.0)


def picture(path: Path, value: int = 128, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


pytestmark = pytest.mark.filterwarnings("ignore:data.root. 1 of 4 pictures lie deeper")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/1.png", "a/1.jpg", "c/deep/1.png"):
        picture(tmp_path / name)
    return tmp_path


def test_subfolders_are_classes(folder: Path) -> None:
    dataset = FolderDataset(folder, AugmentRecipe())
    assert dataset.ids == ["a/1.jpg", "b/1.png", "b/2.png", "c/deep/1.png"]
    assert dataset.classes == ["a", "b", "c"]
    assert list(dataset.labels) == [0, 1, 1, 2]
    assert dataset.hierarchy == []
    assert len(dataset) == 4


def test_nested_folders_are_a_hierarchy(tmp_path: Path) -> None:
    for name in ("animal/cat/tabby/1.png", "animal/cat/tabby/2.png", "animal/dog/pug/1.png", "thing/cup/tea/1.png"):
        picture(tmp_path / name)
    dataset = FolderDataset(tmp_path, AugmentRecipe())
    assert dataset.classes == ["animal/cat/tabby", "animal/dog/pug", "thing/cup/tea"]
    assert list(dataset.labels) == [0, 0, 1, 2]
    assert dataset.hierarchy == [[0, 0, 1, 2], [0, 0, 0, 1]]


def test_pictures_that_lie_deeper_are_told_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 4 pictures lie deeper .* c/deep/1\.png; they are of class c"):
        FolderDataset(folder, AugmentRecipe())
    (folder / "c/deep/1.png").rename(folder / "c/1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderDataset(folder, AugmentRecipe())


def test_folders_of_one_name_are_different_classes(tmp_path: Path) -> None:
    for name in ("cats/other/1.png", "dogs/other/1.png"):
        picture(tmp_path / name)
    assert list(FolderDataset(tmp_path, AugmentRecipe()).labels) == [0, 1]


def test_unreadable_pictures_are_left_out_with_reasons(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "a/empty.png").touch()
    (folder / "a/text.jpg").write_text("not a picture")
    picture(folder / "a/cut.jpg", size=(200, 200))
    (folder / "a/cut.jpg").write_bytes((folder / "a/cut.jpg").read_bytes()[:-200])
    (folder / "a/notes.txt").write_text("not looked at")
    picture(folder / "loose.png")
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    picture(outside)
    (folder / "a/link.png").symlink_to(outside)
    dataset = FolderDataset(folder, AugmentRecipe())
    assert dataset.ids == ["a/1.jpg", "b/1.png", "b/2.png", "c/deep/1.png"]
    reasons = dict(dataset.skipped)
    assert list(reasons) == ["a/cut.jpg", "a/empty.png", "a/link.png", "a/text.jpg", "loose.png"]
    assert "truncated" in reasons["a/cut.jpg"]
    assert reasons["a/link.png"] == "a link that leaves the folder"
    assert reasons["loose.png"] == "it lies in no subfolder, so it has no class"
    assert all(reasons.values())


def test_views_are_a_function_of_index_and_seed(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(folder / "b/1.png")
    dataset = FolderDataset(folder, AugmentRecipe(perspective=0.2))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = dataset[1, 2**62 + 5, 16]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(dataset[1, 2**62 + 5, 16], first)
    assert not torch.equal(dataset[1, 6, 16], first)
    assert first.dtype == torch.float32
    assert tuple(first.shape) == (3, 16, 16)
    views = torch.stack([dataset[1, seed, 16] for seed in range(40)])
    assert views.min() >= 0
    assert views.max() <= 1
    assert len({view.sum().item() for view in views}) == 40


def test_without_augmentation_a_view_is_the_picture() -> None:
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(augmentation(STILL, 12)(image), image / 255, rtol=0, atol=1e-6)


def test_a_picture_that_breaks_later_is_named(folder: Path) -> None:
    dataset = FolderDataset(folder, AugmentRecipe())
    (folder / "b/2.png").unlink()
    with pytest.raises(ValueError, match=r"b/2\.png: No such file"):
        dataset[2, 0, 16]


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root: .*none is not a folder"):
        FolderDataset(tmp_path / "none", AugmentRecipe())
    with pytest.raises(ValueError, match="no image found"):
        FolderDataset(tmp_path, AugmentRecipe())
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"has 1 subfolders with pictures, expected at least two.*2\.png"):
        FolderDataset(tmp_path, AugmentRecipe())

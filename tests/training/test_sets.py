"""Landmarks, tars, views of several shapes, and the dry run, by their entry points."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.retrieval.datasets import load_landmark_training
from hamlet.training import Curriculum, FolderDataset, TeacherCache, load_recipe
from hamlet.training.dry_run import dry_run
from hamlet.training.landmarks import LandmarkDataset
from hamlet.training.recipe import AugmentRecipe
from hamlet.training.run import train_recipe, try_recipe
from hamlet.training.tars import TarDataset
from hamlet.training.teach import teach
from tests.training.test_clip import Counting
from tests.training.test_data import STILL, picture
from tests.training.tiny import Blobs, make, recipe

SHORT = ["steps=4", "batch_size=4", "image_size=64", "optimizer.warmup=1", "data.workers=0", "data.samples_per_class=1"]
SMALL = [*SHORT, "model.name=gem_mobilenetv3_small", "model.descriptor_dim=8"]


def test_landmarks_with_their_coarser_labels(tmp_path: Path) -> None:
    for name in ("0a1b", "1a1b", "2a1b"):
        picture(tmp_path / "train" / name[0] / name[1] / name[2] / f"{name}.jpg")
    (tmp_path / "train_clean.csv").write_text("landmark_id,images\n70,0a1b 1a1b\n9,2a1b\n")
    (tmp_path / "train_label_to_hierarchical.csv").write_text(
        "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"
        "70,http://x/Tower,Tower,tower,human-made\n9,http://x/Lake,,lake,natural\n"
    )
    dataset = LandmarkDataset(tmp_path, AugmentRecipe())
    assert dataset.classes == [9, 70]
    assert list(dataset.labels) == [1, 1, 0]
    assert [list(level) for level in dataset.hierarchy] == [[1, 1, 0], [0, 0, -1]]
    assert dataset[2, 5, 32].shape == (3, 32, 32)
    run = [*SMALL, f"data.root={tmp_path}", "data.kind=landmarks", "stages=[{coarse: 0.5}]", "loss.sampled_classes=2"]
    train_recipe(load_recipe("folder", run), tmp_path / "run", progress=False)


def test_the_recipe_of_landmarks_takes_a_step_of_each_stage(tmp_path: Path) -> None:
    names = [f"{number}a1b" for number in range(4)]
    for place, name in enumerate(names):
        picture(tmp_path / "train" / name[0] / name[1] / name[2] / f"{name}.jpg", 40 * place)
    (tmp_path / "train_clean.csv").write_text("landmark_id,images\n70,0a1b 1a1b\n9,2a1b 3a1b\n")
    (tmp_path / "train_label_to_hierarchical.csv").write_text(
        "landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"
        "70,http://x/Tower,Tower,tower,human-made\n9,http://x/Lake,Lake,lake,natural\n"
    )
    ids = tuple(f"{'/'.join(name[:3])}/{name}.jpg" for name in names)
    TeacherCache(ids, torch.randn(4, 5)).save(tmp_path / "teacher")
    small = ["steps=2", "batch_size=4", "optimizer.warmup=1", "data.workers=0", "model.pretrained=false"]
    small += ["model.name=hamlet_mobilenetv3_small", "model.descriptor_dim=8"]
    small += ["image_size=64", *(f"stages.{stage}.image_size={64 + 32 * stage}" for stage in (0, 1))]
    recipe = load_recipe(
        "landmarks", [*small, "stages.0.until=0.5", f"data.root={tmp_path}", f"data.teacher={tmp_path / 'teacher'}"]
    )
    train_recipe(recipe, tmp_path / "run", progress=False)
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [record["image_size"] for record in history] == [64, 96]
    assert all("loss/distillation" in record and "loss/coarse" in record for record in history)


def test_broken_landmarks_are_left_out_by_the_teacher_or_by_a_check(tmp_path: Path) -> None:
    names = {name: f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg" for name in ("0a1b", "1a1b", "2a1b", "3a1b", "4a1b")}
    for place, name in enumerate(names.values()):
        picture(tmp_path / "train" / name, 40 * place)
    (tmp_path / "train_clean.csv").write_text("landmark_id,images\n70,0a1b 1a1b\n9,2a1b\n5,3a1b\n")
    for name in ("1a1b", "3a1b"):
        (tmp_path / "train" / names[name]).write_bytes(b"\xff\xd8 torn")
    (tmp_path / "clip").mkdir()
    asked = Counting()
    images = load_landmark_training(tmp_path).images
    teach(tmp_path / "clip", images, tmp_path / "cache", prototypes="none", load=lambda _: asked, progress=False)
    # 4a1b is not among the clean ones, two are broken.
    assert asked.asked == 2

    taught = f"data.teacher={tmp_path / 'cache'}"
    run = [*SMALL, f"data.root={tmp_path}", "data.kind=landmarks"]
    for place, more in enumerate(([taught, "stages=[{distillation: 1, alpha: 0}]"], ["data.check=true"])):
        _, dataset = train_recipe(load_recipe("folder", [*run, *more]), tmp_path / f"{place}", progress=False)
        assert dataset.ids == [names["0a1b"], names["2a1b"]]
        assert list(dataset.labels) == [1, 0]
        assert [name for name, why in dataset.skipped if why] == [names["1a1b"], names["3a1b"]]
    with pytest.raises(ValueError, match=names["1a1b"]):
        train_recipe(load_recipe("folder", run), tmp_path / "unchecked", progress=False)


def write_tars(photos: Path, out: Path, prefix: str = "") -> list[str]:
    """Three pictures a tar, their classes below a prefix; the pictures' names."""
    webdataset = pytest.importorskip("webdataset")
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    out.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(out / f"{shard}.tar")) as tar:
            for name in names[3 * shard : 3 * shard + 3]:
                label = prefix + name.split("/")[0]
                key = name.removesuffix(".png")
                tar.write({"__key__": key, "png": (photos / name).read_bytes(), "cls": label.encode()})
    return names


def test_tars_of_webdataset_give_the_views_of_a_folder_and_follow_its_teacher(photos: Path, tmp_path: Path) -> None:
    (photos / "dark" / "1.png").write_bytes(b"\x89PNG torn")
    names = write_tars(photos, tmp_path / "tars")
    packed = TarDataset(tmp_path / "tars", AugmentRecipe(), check=True)
    plain = FolderDataset(photos, AugmentRecipe())
    names.remove("dark/1.png")
    assert packed.ids == plain.ids == names
    assert list(packed.labels) == list(plain.labels)
    assert packed.skipped == plain.skipped
    for sample in range(5):
        assert torch.equal(packed[sample, 3, 32], plain[sample, 3, 32])
    (tmp_path / "clip").mkdir()
    teach(tmp_path / "clip", photos, tmp_path / "cache", load=lambda _: Counting(), progress=False)
    taught = [f"data.teacher={tmp_path / 'cache'}", "stages=[{distillation: 1}]"]
    run = [*SMALL, *taught, f"data.root={tmp_path / 'tars'}", "data.kind=tars"]
    train_recipe(load_recipe("folder", run), tmp_path / "run", progress=False)


def test_tars_are_indexed_once_and_their_classes_may_have_coarser_ones(photos: Path, tmp_path: Path) -> None:
    tars, index = tmp_path / "tars", tmp_path / "tars" / "index.json"
    write_tars(photos, tars, prefix="shade/")
    first = TarDataset(tars, AugmentRecipe())
    assert first.classes == ["shade/dark", "shade/light"]
    assert [list(level) for level in first.hierarchy] == [[0] * 6]
    before = index.read_bytes()
    TarDataset(tars, AugmentRecipe())
    assert index.read_bytes() == before
    # What a damaged or a foreign index says is not believed, least of all where to read.
    elsewhere = before.replace(b'"0.tar"', b'"../0.tar"')
    assert elsewhere != before
    for wrong in (before[:-9], b"[]", elsewhere):
        index.write_bytes(wrong)
        assert TarDataset(tars, AugmentRecipe()).ids == first.ids
        assert index.read_bytes() == before
    (tars / "2.tar").write_bytes((tars / "1.tar").read_bytes())
    with pytest.raises(ValueError, match=r"hold light/0\.png twice"):
        TarDataset(tars, AugmentRecipe())
    (tars / "2.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"2\.tar is no tar that can be read"):
        TarDataset(tars, AugmentRecipe())


def pass_over(curriculum: Curriculum) -> list[Any]:
    batches = list(curriculum)
    for batch in batches:
        curriculum.observe([sample for sample, *_ in batch], [])
    return batches


def test_a_batch_holds_views_of_one_shape(tmp_path: Path) -> None:
    sizes = [(60, 40), (40, 60), (50, 50), (64, 40)]
    for number in range(16):
        picture(tmp_path / f"{number % 2}" / f"{number:02}.png", size=sizes[number % 4])
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "0" / "turned.jpg", exif=exif)
    aspects = (1.5, 1.0, 2 / 3)
    dataset = FolderDataset(tmp_path, STILL, aspects)
    shown = dict(zip(dataset.ids, dataset.shapes, strict=True))
    assert (shown["0/00.png"], shown["1/01.png"], shown["0/02.png"], shown["0/turned.jpg"]) == (0, 2, 1, 2)
    curriculum = Curriculum(dataset.labels, recipe("batch_size=3", "curriculum.difficulty=none"), shapes=dataset.shapes)
    batches = [batch for _ in range(20) for batch in pass_over(curriculum)]
    assert {sample for batch in batches for sample, *_ in batch} == set(range(17))
    for batch in batches:
        assert len({dataset[sample, seed, 128].shape for sample, seed, _ in batch}) == 1
    assert dataset[0, 0, 128].shape[1:] == (96, 160)
    assert len({dataset.shapes[batch[0][0]] for batch in batches}) == 3


def test_stages_have_their_own_image_size_and_sampler() -> None:
    stages = "stages=[{until: 0.5, image_size: 4}, {samples_per_class: 3}]"
    curriculum = Curriculum([n // 4 for n in range(24)], recipe("curriculum.difficulty=none", "steps=10", stages))
    taken: list[Any] = []
    while len(taken) < 10:
        for batch in curriculum:
            taken.append(batch)
            curriculum.observe([sample for sample, *_ in batch], [0.0] * len(batch))
            if len(taken) == 10:
                break
    assert [{size for *_, size in batch} for batch in taken] == [{4}] * 5 + [{8}] * 5
    counts = [sorted(np.bincount([sample // 4 for sample, *_ in batch]).tolist())[-2:] for batch in taken]
    assert all(count == [3, 3] for count in counts[5:])
    assert any(count != [3, 3] for count in counts[:5])


def test_difficulty_from_a_file(tmp_path: Path) -> None:
    from hamlet.training.teacher import read_difficulty

    path = tmp_path / "difficulty.jsonl"
    path.write_text('{"image": "b", "difficulty": 2}\n{"image": "a", "difficulty": 0.5}\n')
    assert read_difficulty(path, ["a", "b"]) == [0.5, 2.0]
    with pytest.raises(ValueError, match="no difficulty of 1 of 2 pictures, such as 'c'"):
        read_difficulty(path, ["a", "c"])
    for wrong in ("NaN", "true", '"x"', "null"):
        path.write_text('{"image": "a", "difficulty": ' + wrong + "}\n")
        with pytest.raises(ValueError, match="line 1: expected"):
            read_difficulty(path, ["a"])
    with pytest.raises(ValueError, match=r"curriculum\.file: got None"):
        recipe("curriculum.difficulty=file")


def test_dry_run_tells_and_keeps_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stages = "stages=[{until: 0.5, image_size: 32}, {}]"
    found, _ = try_recipe(load_recipe("folder", [*SMALL, stages, f"data.root={photos}"]), out, progress=False)
    assert (found.samples, found.classes, found.steps) == (6, 2, [2, 2])
    for parts, whole in zip(found.seconds, found.step_seconds, strict=True):
        assert 0.5 * whole < sum(parts.values()) <= whole
    assert found.total_seconds == pytest.approx(2 * sum(found.step_seconds))
    assert found.checkpoint > 4 * found.parameters
    if sys.platform == "linux":
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert told is not None
        assert found.memory == pytest.approx(1024 * int(told[1]), rel=0.02)
    assert not out.exists()
    shown = CliRunner().invoke(app, ["train", "folder", *SMALL, f"data.root={photos}", "--dry-run", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "parameters" in shown.stdout
    assert not out.exists()


def test_dry_run_waits_until_a_loader_that_is_too_slow_shows(tmp_path: Path) -> None:
    class Slow(Blobs):
        def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
            time.sleep(0.05)
            return super().__getitem__(key)

    chosen = recipe("stages=[{}]", "data.workers=2", "curriculum.difficulty=none", "batch_size=4")
    found = dry_run(make(), chosen, Slow(), out=tmp_path)
    # Two workers take 0.2 s a batch each.
    assert found.step_seconds[0] == pytest.approx(0.1, rel=0.5)
    assert found.seconds[0]["data"] > 0.5 * found.step_seconds[0]


def test_demo_writes_its_photographs_as_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hamlet.demo.data import instances

    monkeypatch.setattr("hamlet.demo.folder.instances", lambda names: [i for n in names for i in instances([n])[:6]])
    shown = CliRunner().invoke(app, ["demo", "--photographs", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    settings = [*shown.stdout.split(), "steps=1", "optimizer.warmup=0", "batch_size=4"]
    _, dataset = train_recipe(load_recipe("ablation", settings), tmp_path / "run", progress=False)
    assert len(dataset.hierarchy) == 1
    assert len(dataset) == 72
    held = FolderDataset(tmp_path / "out" / "validation", AugmentRecipe())
    assert len(held) == 29 * 14 + 7 * 10  # every fifth only distracts
    assert not set(dataset.ids) & set(held.ids)
    with Image.open(io.BytesIO((tmp_path / "out" / "train" / dataset.ids[0]).read_bytes())) as image:
        assert image.size[0] >= 84

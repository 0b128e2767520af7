"""Training: that it learns, what it tells, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from hamlet.models import load_checkpoint
from hamlet.training import TeacherCache, load_recipe, train, train_recipe
from hamlet.training.plots import _draw_tenths
from hamlet.training.timing import PARTS
from tests.training import tiny
from tests.training.runs import STEPS, assert_same_run, kept, run
from tests.training.test_data import picture


def test_loss_falls(tmp_path: Path) -> None:
    plain = ("stages=[{}]", "curriculum.difficulty=none", "loss.margin=0.0")
    recipe = tiny.recipe("steps=80", "optimizer.lr=0.05", *plain)
    model = tiny.make(tiny.TinyConfig(dropout=0.0))
    losses = [record["loss"] for record in train(model, recipe, tiny.Blobs(), out=tmp_path, progress=False)]
    # Six classes: a guess costs log 6 = 1.8.
    assert sum(losses[:5]) / 5 > 1.8
    assert sum(losses[-10:]) / 10 < 0.5


def test_history_tells_of_every_step(whole: Path) -> None:
    history = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == list(range(1, STEPS + 1))
    terms = ["classification", "distillation", "consistency", "hierarchy", "coarse", "budget"]
    for record in history:
        assert [name for name in record if name.startswith("loss/")] == [f"loss/{term}" for term in terms]
        weights = (1.0, 0.5, 0.1, 1.0, 0.2, 0.1)
        weighed = sum(weight * record[f"loss/{term}"] for weight, term in zip(weights, terms, strict=True))
        assert record["loss"] == pytest.approx(weighed, rel=1e-4)
        assert sum(record[f"drawn/{tenth}"] for tenth in range(1, 11)) == 6
    # Seven of 24 samples are in use at first: the easiest three tenths.
    assert not any(history[0][f"drawn/{tenth}"] for tenth in range(4, 11))
    assert [record["stage"] for record in history] == [0] * 8 + [1] * 12
    assert [history[8]["temperature"], history[-1]["temperature"]] == pytest.approx([4.0, 1.0])
    # A linear warm-up over two steps, then a cosine over eighteen to a hundredth.
    rates = [record["lr"] for record in history]
    assert [rates[0], rates[1], rates[2], rates[11]] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02, 0.0101])
    pools = [record["pool"] for record in history]
    assert pools[0] == pytest.approx(7 / 24)
    assert pools[-1] == 1.0
    assert pools == sorted(pools)


def test_out_holds_what_was_said(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoint.pt",
        "history.jsonl",
        "model.pt",
        "recipe.yaml",
        "tensorboard",
        "timing.jsonl",
        "training.png",
    ]
    assert load_recipe(whole / "recipe.yaml") == tiny.recipe()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))


def test_model_file_is_the_average_of_the_weights(tmp_path: Path) -> None:
    model = tiny.make()
    weights = [model.head.weight.detach().clone()]

    class Watching(tiny.Blobs):
        """The first sample of each step is asked for when the step before it is done."""

        def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
            if not torch.equal(weights[-1], model.head.weight):
                weights.append(model.head.weight.detach().clone())
            return super().__getitem__(key)

    recipe = tiny.recipe("average=0.75", "steps=4")
    train(model, recipe, Watching(), out=tmp_path, teacher=tiny.teacher(), progress=False)
    last = kept(tmp_path)[".learner.model.head.weight"]
    expected = weights[0]
    for each in (*weights[1:], last):
        expected = 0.75 * expected + 0.25 * each
    assert len(weights) == 4
    written = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]["head.weight"]
    torch.testing.assert_close(written, expected)
    assert torch.equal(model.head.weight, written)


def test_time_of_a_step_is_split(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(list(line)[1:] == list(PARTS) for line in lines)
    assert all(min(line[part] for part in ("data", "forward", "backward", "optimizer")) > 0 for line in lines)
    with Image.open(whole / "training.png") as picture:
        assert picture.size == (900, 990)


def test_the_picture_shows_what_was_drawn_when() -> None:
    axes = Figure().subplots()
    # Two steps of four samples: from the easiest tenth alone, then half of them from the hardest.
    history = [
        {f"drawn/{tenth}": 0.0 for tenth in range(1, 11)} | drawn
        for drawn in ({"drawn/1": 4.0}, {"drawn/1": 2.0, "drawn/10": 2.0})
    ]
    _draw_tenths(axes, history)
    shares = axes.images[0].get_array()
    assert shares[0].tolist() == [1.0, 0.5]
    assert shares[9].tolist() == [0.0, 0.5]
    assert shares.sum() == 2
    assert list(axes.images[0].get_extent()[2:]) == [0.5, 10.5]


def test_progress_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny.make(), tiny.recipe(), tiny.Blobs(), out=tmp_path / "told", teacher=tiny.teacher(), stop_after=2)
    told = capfd.readouterr()
    assert told.out == ""
    assert f"2/{STEPS}" in told.err
    assert re.search(r"a step took [\d.]+ s: data \d+%, forward \d+%, backward \d+%, communication \d+%, opt", told.err)
    run(tmp_path / "quiet", stop_after=2)
    assert capfd.readouterr() == ("", "")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop_after: got 0"):
        run(tmp_path, stop_after=0)
    short = TeacherCache(("a",), torch.ones(1, 5))
    with pytest.raises(ValueError, match="no embedding of 24 of 24 pictures"):
        train(tiny.make(), tiny.recipe(), tiny.Blobs(), out=tmp_path, teacher=short, progress=False)
    with pytest.raises(ValueError, match="there is no teacher"):
        train(tiny.make(), tiny.recipe(), tiny.Blobs(), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_real_model_from_a_folder(tmp_path: Path) -> None:
    for label, value in (("dark", 40), ("light", 220)):
        for number in range(3):
            picture(tmp_path / "photos" / label / f"{number}.png", value, size=(80, 70))
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"\x89PNG")
    ids = [f"{label}/{number}.png" for label in ("dark", "light") for number in range(3)]
    TeacherCache(tuple(ids), torch.randn(6, 5), torch.randn(2, 5)).save(tmp_path / "teacher")
    weights = "{distillation: 1.0, hierarchy: 1.0, budget: 0.1}"
    recipe = load_recipe(
        "folder",
        [
            *("steps=4", "batch_size=4", "image_size=64", "optimizer.warmup=1", "data.workers=0"),
            *("model.name=hamlet_mobilenetv3_small", "model.descriptor_dim=16"),
            *(f"data.root={tmp_path / 'photos'}", f"data.teacher={tmp_path / 'teacher'}"),
            *(f"stages=[{weights}]", "loss.distilled_levels=[-1, 0]"),
        ],
    )
    out = tmp_path / "run"
    model, dataset = train_recipe(recipe, out, progress=False, stop_after=2)
    assert [name for name, _ in dataset.skipped] == ["dark/broken.png"]
    model, _ = train_recipe(recipe, out, progress=False)
    loaded, extra = load_checkpoint(out / "model.pt")
    assert extra["step"] == 4
    assert loaded.name == "hamlet_mobilenetv3_small"
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model.eval()(images))
    train_recipe(recipe, tmp_path / "whole", progress=False)
    assert_same_run(out, tmp_path / "whole")


def test_a_recipe_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root: missing"):
        train_recipe(load_recipe("folder"), tmp_path)
    with pytest.raises(ValueError, match="model: name: got 'hamlet_nothing'"):
        train_recipe(load_recipe("folder", ["model.name=hamlet_nothing", f"data.root={tmp_path}"]), tmp_path)

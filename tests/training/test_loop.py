"""Training: that it learns, that it can be killed, and that it tells what went wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from hamlet.models import load_checkpoint
from hamlet.training import DivergedError, History, TeacherCache, build_model, load_recipe, train, train_recipe
from hamlet.training.engine import PRECISIONS
from hamlet.training.timing import PARTS
from tests.training import tiny
from tests.training.test_data import picture

STEPS = 20


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def run(out: Path, *overrides: str, stop_after: int | None = None, dataset: tiny.Blobs | None = None) -> History:
    return train(
        tiny.make(),
        tiny.recipe(*overrides),
        dataset or tiny.Blobs(),
        out=out,
        teacher=tiny.teacher(),
        progress=False,
        stop_after=stop_after,
    )


def kept(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's checkpoint: weights, buffers, optimiser, curriculum."""
    found: dict[str, torch.Tensor] = {}

    def collect(value: object, name: str) -> None:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                collect(item, f"{name}.{key}")
        elif value is not None:
            found[name] = torch.as_tensor(value) if not isinstance(value, str) else torch.tensor(list(value.encode()))

    collect(torch.load(out / "checkpoint.pt", weights_only=True)["state"], "")
    return found


def assert_same_run(out: Path, expected: Path) -> None:
    one, other = kept(out), kept(expected)
    assert one.keys() == other.keys()
    assert len(one) > 50
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert (out / "history.jsonl").read_bytes() == (expected / "history.jsonl").read_bytes()
    models = [torch.load(folder / "model.pt", weights_only=True)["state_dict"] for folder in (out, expected)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    AcceleratorState._reset_state(True)
    return out


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


@pytest.mark.parametrize("step", [1, 2, 3, 7, 12, 19])
def test_stopped_and_resumed_is_the_same_run(tmp_path: Path, whole: Path, step: int) -> None:
    assert len(run(tmp_path, stop_after=step)) == step
    assert len(run(tmp_path)) == STEPS
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("views", [1, 17, 50, 61, 100])
def test_failed_between_checkpoints_and_resumed_is_the_same_run(tmp_path: Path, whole: Path, views: int) -> None:
    broken = tiny.Blobs()
    broken.fails_at = views
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path, dataset=broken)
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_many_stops_and_another_generator_state_make_no_difference(tmp_path: Path, whole: Path) -> None:
    for step in range(2, STEPS + 1, 3):
        torch.manual_seed(step)
        run(tmp_path, stop_after=step)
    run(tmp_path)
    assert_same_run(tmp_path, whole)


def test_finished_run_is_left_as_it_is(tmp_path: Path, whole: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "model.pt").unlink()  # killed between the last checkpoint and the model
    assert len(run(tmp_path)) == STEPS
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert_same_run(tmp_path, whole)


def test_workers_change_nothing(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, "data.workers=2", stop_after=7)
    run(tmp_path, "data.workers=1", "checkpoint_every=5")
    assert_same_run(tmp_path, whole)


def in_processes(what: str, out: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.training.processes", what, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_killed_at_random_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    in_processes("killed", tmp_path)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_two_processes_take_the_steps_of_one_and_resume_bit_for_bit(tmp_path: Path) -> None:
    in_processes("two", tmp_path)
    single, double = kept(tmp_path / "one"), kept(tmp_path / "two")
    assert single.keys() == double.keys()
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    histories = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("one", "two")]
    for records in zip(*histories, strict=True):
        assert json.loads(records[1]) == pytest.approx(json.loads(records[0]), rel=1e-4, abs=1e-6)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_two_processes_have_the_gradients_of_one_and_so_have_parts(tmp_path: Path) -> None:
    in_processes("gradients", tmp_path)
    pairs = [
        ("all-two", "all-one"),
        ("sampled-two", "sampled-one"),
        *((f"alone-{n}", "alone-one") for n in ("parts", "two")),
    ]
    for one, other in pairs:
        found, expected = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in (one, other))
        assert found.keys() == expected.keys()
        assert len(expected) >= 8
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=f"{one}: {name}")
    strength = torch.load(tmp_path / "all-one.pt", weights_only=True)
    assert min(float(gradient.abs().max()) for gradient in strength.values()) > 1e-4


def test_sigterm_to_one_of_two_processes_saves_and_ends_both(tmp_path: Path) -> None:
    in_processes("terminated", tmp_path)
    assert_same_run(tmp_path / "terminated", tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.lr=0.01",), r"optimizer\.lr=0\.02 \(now 0\.01\)"),
        (("stages.1.alpha=0.25", "seed=3"), r"seed=0 \(now 3\), stages\.1\.alpha=0\.5 \(now 0\.25\)"),
    ],
)
def test_another_recipe_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    run(tmp_path, stop_after=2)
    before = (tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *overrides)
    assert ((tmp_path / "checkpoint.pt").read_bytes(), (tmp_path / "history.jsonl").read_bytes()) == before


def test_another_model_dataset_or_teacher_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_after=2)
    common = {"out": tmp_path, "progress": False}
    model = tiny.make(tiny.TinyConfig(width=4))
    with pytest.raises(ValueError, match=r"model\.width=8 \(now 4\)"):
        train(model, tiny.recipe(), tiny.Blobs(), teacher=tiny.teacher(), **common)
    other = TeacherCache(tuple(tiny.Blobs().ids), torch.ones(24, 5), torch.eye(5), torch.ones(24, 5))
    with pytest.raises(ValueError, match="teacher="):
        train(tiny.make(), tiny.recipe(), tiny.Blobs(), teacher=other, **common)
    dataset = tiny.Blobs()
    dataset.labels.reverse()
    with pytest.raises(ValueError, match="dataset="):
        train(tiny.make(), tiny.recipe(), dataset, teacher=tiny.teacher(), **common)


def test_damaged_checkpoints_and_histories_are_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_after=3)
    history = (tmp_path / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "history.jsonl").write_text("".join(history[:2]) + history[2][:20])
    with pytest.raises(ValueError, match=r"history\.jsonl lacks steps"):
        run(tmp_path)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        run(tmp_path)
    torch.save({"weights": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="no checkpoint of a training run"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path: Path) -> None:
    model = tiny.make(tiny.TinyConfig(normalise=False))
    recipe = tiny.recipe("curriculum.difficulty=none", "optimizer.lr=0.001")
    with pytest.raises(DivergedError, match=r"at step \d: loss nan.* with samples 5 \(05\.jpg\);"):
        train(model, recipe, tiny.Blobs(spoilt=5), out=tmp_path, teacher=tiny.teacher(), progress=False)
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def test_a_loss_that_is_not_finite_writes_the_batch_out(tmp_path: Path) -> None:
    model = tiny.make(tiny.TinyConfig(normalise=False))
    recipe = tiny.recipe("curriculum.difficulty=none", "optimizer.lr=0.001")
    with pytest.raises(DivergedError):
        train(model, recipe, tiny.Blobs(spoilt=5), out=tmp_path, teacher=tiny.teacher(), progress=False)
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert len(told["batch"]) == recipe.batch_size
    assert [entry["id"] for entry in told["batch"] if entry["loss"] == "nan"] == ["05.jpg"]
    assert told["loss"] == "nan"


def test_best_checkpoint_is_of_the_best_validation_and_resumes(tmp_path: Path) -> None:
    def scored(model: Any) -> float:
        return -abs(float(model.head.weight.detach().norm()) - 1.5)

    def go(out: Path, stop_after: int | None = None) -> History:
        recipe = tiny.recipe("validate_every=2", "average=0.5")
        return train(
            *(tiny.make(), recipe, tiny.Blobs()),
            **{"out": out, "teacher": tiny.teacher(), "validate": scored, "progress": False, "stop_after": stop_after},  # type: ignore[arg-type]
        )

    history = go(tmp_path / "whole")
    scores = {record["step"]: record["validation/map"] for record in history if "validation/map" in record}
    assert list(scores) == list(range(2, STEPS + 1, 2))
    best = torch.load(tmp_path / "whole" / "best.pt", weights_only=True)
    assert best["extra"]["map"] == max(scores.values())
    assert scores[best["extra"]["step"]] == max(scores.values())
    assert -abs(float(best["state_dict"]["head.weight"].norm()) - 1.5) == max(scores.values())
    for stop in (3, 6, 11):
        go(tmp_path / "cut", stop)
    go(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    again = torch.load(tmp_path / "cut" / "best.pt", weights_only=True)
    assert torch.equal(again["state_dict"]["head.weight"], best["state_dict"]["head.weight"])


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


@pytest.mark.parametrize("switch", ["channels_last=true", "activation_checkpointing=true"])
def test_switches_of_speed_and_memory_give_the_same_weights(tmp_path: Path, switch: str) -> None:
    def go(out: Path, *settings: str) -> dict[str, torch.Tensor]:
        plain = (
            "steps=3",
            "batch_size=4",
            "image_size=64",
            "optimizer.warmup=1",
            "data.workers=0",
            "data.samples_per_class=1",
        )
        recipe = load_recipe("folder", ["model.name=gem_resnet18", "model.descriptor_dim=8", *plain, *settings])
        train(build_model(recipe), recipe, tiny.Blobs(), out=out, progress=False)
        found: dict[str, torch.Tensor] = torch.load(out / "model.pt", weights_only=True)["state_dict"]
        return found

    switched, expected = go(tmp_path / "switched", switch), go(tmp_path / "plain")
    for name in expected:
        torch.testing.assert_close(switched[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_parts_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_checkpointing: tiny has no part"):
        run(tmp_path, "activation_checkpointing=true")
    with pytest.raises(ValueError, match="accumulate: got 4, expected a divisor of a process's 6 samples"):
        run(tmp_path, "accumulate=4")


def test_compiled_model_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_eagerly(model: tiny.Tiny) -> None:
        compiled.append(model)
        torch.nn.Module.compile(model, backend="aot_eager")

    monkeypatch.setattr(tiny.Tiny, "compile", compile_eagerly)
    plain = ("steps=3", "stages=[{}]")
    for name, switch in (("compiled", "compile=true"), ("plain", "compile=false")):
        model = tiny.make(tiny.TinyConfig(dropout=0.0))
        train(model, tiny.recipe(*plain, switch), tiny.Blobs(), out=tmp_path / name, progress=False)
    assert len(compiled) == 1
    one, other = (
        torch.load(tmp_path / name / "model.pt", weights_only=True)["state_dict"] for name in ("compiled", "plain")
    )
    assert one.keys() == other.keys()
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5, msg=name)


def test_time_of_a_step_is_split(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(list(line)[1:] == list(PARTS) for line in lines)
    assert all(min(line[part] for part in ("data", "forward", "backward", "optimizer")) > 0 for line in lines)
    with Image.open(whole / "training.png") as picture:
        assert picture.size == (900, 990)


def test_bfloat16_learns_too(tmp_path: Path) -> None:
    history = run(tmp_path, "precision=bfloat16", "steps=60", "optimizer.lr=0.05", "stages=[{}]", "loss.margin=0.0")
    assert history[-1]["loss"] < history[0]["loss"] / 2
    model = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    assert model["head.weight"].dtype == torch.float32
    assert set(PRECISIONS.values()) == {"no", "bf16", "fp16"}


def test_progress_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny.make(), tiny.recipe(), tiny.Blobs(), out=tmp_path / "told", teacher=tiny.teacher(), stop_after=2)
    told = capfd.readouterr()
    assert told.out == ""
    assert f"2/{STEPS}" in told.err
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

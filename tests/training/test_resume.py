"""A run that was stopped, killed or spread over processes is the run that was not; another's checkpoint is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hamlet.training import TeacherCache, train
from tests.training import tiny
from tests.training.runs import STEPS, assert_same_run, in_processes, run


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


def test_lines_of_a_killed_run_are_taken_back(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, stop_after=7)
    for name, torn in (("history", '{"step": 8, "lo'), ("timing", '{"step": 8, "data": 1.0}\n{"step": 9, "da')):
        with open(tmp_path / f"{name}.jsonl", "a") as file:
            file.write(torn)
    run(tmp_path)
    assert_same_run(tmp_path, whole)
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timing] == list(range(1, STEPS + 1))
    assert timing[7]["data"] < 1.0


def test_a_picture_that_cannot_be_drawn_costs_no_run(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, stop_after=STEPS - 1)
    (tmp_path / "training.png").unlink()
    (tmp_path / "training.png").mkdir()
    with pytest.warns(UserWarning, match=r"training\.png cannot be drawn \("):
        assert len(run(tmp_path)) == STEPS
    assert_same_run(tmp_path, whole)


def test_workers_change_nothing(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, "data.workers=2", stop_after=7)
    run(tmp_path, "data.workers=1", "checkpoint_every=5")
    assert_same_run(tmp_path, whole)


def test_killed_at_random_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    in_processes("killed", tmp_path)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


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


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_after=2)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["identity"]["processes"] = 2
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"of a run with processes=2 \(now 1\)"):
        run(tmp_path)


def test_another_difficulty_is_refused_and_the_same_may_be_moved(tmp_path: Path) -> None:
    lines = [json.dumps({"image": name, "difficulty": place}) for place, name in enumerate(tiny.Blobs().ids)]
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    here.write_text("\n".join(lines))
    run(tmp_path / "run", "curriculum.difficulty=file", f"curriculum.file={here}", stop_after=2)
    here.rename(there)
    run(tmp_path / "run", "curriculum.difficulty=file", f"curriculum.file={there}", stop_after=4)
    there.write_text("\n".join(reversed(lines)).replace('"difficulty": 3', '"difficulty": 30'))
    with pytest.raises(ValueError, match="of a run with difficulty="):
        run(tmp_path / "run", "curriculum.difficulty=file", f"curriculum.file={there}")


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

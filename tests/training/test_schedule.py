"""Stages, temperature and pacing, by hand."""

from __future__ import annotations

import pytest

from hamlet.training.recipe import CurriculumRecipe, StageRecipe
from hamlet.training.schedule import PURPOSES, chance, moment, pace


@pytest.mark.parametrize(
    ("pacing", "expected"),
    [
        # start 0.2, all in use after 50 of 100 steps; at steps 0, 12.5 x (0, 1, 2, 3, 4) and beyond.
        ("linear", [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]),
        ("root", [0.2, 0.28**0.5, 0.52**0.5, 0.76**0.5, 1.0, 1.0]),
        ("step", [0.2, 0.2, 0.6, 0.6, 1.0, 1.0]),
    ],
)
def test_pacing(pacing: str, expected: list[float]) -> None:
    recipe = CurriculumRecipe("loss", pacing, start=0.2, until=0.5, jumps=2)  # type: ignore[arg-type]
    assert [pace(recipe, step, 200) for step in (0, 25, 50, 75, 100, 180)] == pytest.approx(expected)


def test_without_a_curriculum_all_samples_are_in_use() -> None:
    assert pace(CurriculumRecipe("none", start=0.1), 0, 100) == 1.0


def test_stages_and_temperatures() -> None:
    stages = (StageRecipe(until=0.3), StageRecipe(until=0.8, temperature=(16.0, 1.0)), StageRecipe())
    moments = [moment(stages, step, 10) for step in range(10)]
    assert [m.index for m in moments] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert [m.temperature for m in moments[3:8]] == pytest.approx([16, 8, 4, 2, 1])
    assert all(m.stage is stages[m.index] for m in moments)


def test_a_stage_of_one_step_is_at_its_last_temperature() -> None:
    assert moment((StageRecipe(temperature=(4.0, 2.0)),), 0, 1).temperature == pytest.approx(2.0)


def test_chance_differs_by_seed_purpose_and_place() -> None:
    keys = [(seed, purpose, *place) for seed in (0, 1) for purpose in PURPOSES for place in ((), (0,), (0, 0), (1,))]
    assert len({int(chance(*key).generate_state(1)[0]) for key in keys}) == len(keys)  # type: ignore[arg-type]
    assert chance(3, "order", 5).generate_state(2).tolist() == chance(3, "order", 5).generate_state(2).tolist()

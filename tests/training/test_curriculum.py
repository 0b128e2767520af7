"""What is trained on when."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch

from hamlet.training import Curriculum, TeacherCache
from hamlet.training.engine import Engine
from tests.training import tiny
from tests.training.tiny import recipe

PLAIN = ("curriculum.difficulty=none",)
LABELS = [sample // 4 for sample in range(24)]


def rounds(curriculum: Curriculum, losses: dict[int, float] | None = None, steps: int = 20) -> list[list[int]]:
    """The samples of each step, as the training loop takes them."""
    taken: list[list[int]] = []
    while len(taken) < steps:
        for batch in curriculum:
            samples = [sample for sample, *_ in batch]
            taken.append(samples)
            curriculum.observe(samples, [(losses or {}).get(sample, 0.0) for sample in samples])
            if len(taken) == steps:
                break
    return taken


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def test_without_difficulty_each_round_is_a_pass_in_a_new_order() -> None:
    taken = rounds(Curriculum(LABELS, recipe(*PLAIN)), steps=8)
    first, second = flat(taken[:4]), flat(taken[4:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first != sorted(first)


def test_a_round_is_filled_up_to_whole_batches() -> None:
    taken = rounds(Curriculum(LABELS[:10], recipe(*PLAIN)), steps=2)
    assert sorted(Counter(flat(taken)).values()) == [1] * 8 + [2] * 2


def test_easy_samples_come_first_and_all_in_the_end() -> None:
    settings = recipe("curriculum.difficulty=teacher", "curriculum.start=0.25", "curriculum.until=0.5")
    difficulty = [float(-sample) for sample in range(24)]
    taken = rounds(Curriculum(LABELS, settings, difficulty))
    # A quarter of 24 samples is one batch of the last six; a step later, the linear pace is at 0.325: eight samples,
    # two batches; at step 3, 0.475: eleven, two batches; at step 5, 0.625: fifteen, three; at step 8, 0.85: twenty.
    assert set(taken[0]) == set(range(18, 24))
    assert set(taken[1] + taken[2]) == set(range(16, 24))
    assert set(taken[3] + taken[4]) == set(range(13, 24))
    assert set(flat(taken[5:8])) == set(range(9, 24))
    assert set(flat(taken[8:12])) == set(range(4, 24))
    assert set(flat(taken[12:16])) == set(range(24))


def test_what_the_teacher_is_sure_of_is_easy(tmp_path: Path) -> None:
    # One class's pictures lie on its prototype, the others' between all: the first batch is of those four.
    blobs = tiny.Blobs()
    towards = torch.eye(tiny.CLASSES)
    embeddings = torch.stack([towards[0] if label == 0 else towards.mean(0) for label in blobs.labels])
    teacher = TeacherCache(tuple(blobs.ids), embeddings, prototypes=towards, logit_scale=10.0)
    settings = ("curriculum.difficulty=teacher", "curriculum.start=0.17", "batch_size=4", "stages=[{}]")
    engine = Engine(tiny.make(), recipe(*settings), blobs, out=tmp_path, teacher=teacher)
    assert sorted(engine.curriculum.ranking()[:4].tolist()) == [0, 1, 2, 3]
    assert sorted(sample for sample, _, _ in next(iter(engine.curriculum))) == [0, 1, 2, 3]


def test_what_was_drawn_is_told_by_tenths_of_the_ranking() -> None:
    settings = recipe("curriculum.difficulty=teacher", "curriculum.start=1.0")
    curriculum = Curriculum([0, 1] * 10, settings, [float(-sample) for sample in range(20)])
    next(iter(curriculum))
    # The last two samples are the easiest tenth, the first two the hardest.
    assert curriculum.drawn([19, 18, 17, 0, 0]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_running_losses_rank_the_samples_and_unseen_ones_come_early() -> None:
    curriculum = Curriculum(LABELS, recipe("curriculum.momentum=0.75", "curriculum.start=0.5"))
    assert sorted(curriculum.ranking()) == list(range(24))
    curriculum.observe([3, 5], [1.0, 2.0])
    curriculum.observe([3, 3], [5.0, 9.0])
    # 1 -> 0.75 * 1 + 0.25 * 5 = 2 -> 0.75 * 2 + 0.25 * 9 = 3.75
    assert curriculum.difficulty[3] == 3.75
    assert curriculum.ranking()[-2:].tolist() == [5, 3]


def test_hard_samples_are_met_early_and_then_left_until_later() -> None:
    settings = recipe("steps=100", "curriculum.start=0.5", "curriculum.until=0.9")
    hard = dict.fromkeys(range(8), 10.0)
    taken = rounds(Curriculum(LABELS, settings), hard, steps=100)
    assert set(flat(taken[:8])) == set(range(24))
    assert not set(hard) & set(flat(taken[8:20]))
    assert set(hard) <= set(flat(taken[90:]))


def test_order_and_seeds_are_a_function_of_the_seed() -> None:
    one, same = (list(Curriculum(LABELS, recipe(*PLAIN))) for _ in range(2))
    other = list(Curriculum(LABELS, recipe(*PLAIN, "seed=1")))
    assert one == same
    assert one != other
    seeds = [seed for batch in one for _, seed, _ in batch]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("step", range(1, 12))
def test_state_goes_back_to_any_step(step: int) -> None:
    losses = {sample: float(sample % 5) for sample in range(24)}
    whole, cut, resumed = (Curriculum(LABELS, recipe()) for _ in range(3))
    expected = rounds(whole, losses)
    # A loader that reads ahead has drawn more batches than were trained on.
    rounds(cut, losses, step)
    list(cut)
    resumed.load_state_dict(cut.state_dict())
    assert rounds(resumed, losses, 20 - step) == expected[step:]


def test_samples_per_class() -> None:
    settings = recipe(*PLAIN, "data.samples_per_class=3")
    taken = rounds(Curriculum(LABELS, settings), steps=12)
    for batch in taken:
        classes = Counter(LABELS[sample] for sample in batch)
        assert sorted(classes.values()) == [3, 3]
    # Twelve batches are three rounds; in each round of eight turns every class has at least one.
    assert {LABELS[sample] for batch in taken[:4] for sample in batch} == set(range(6))
    assert set(flat(taken)) == set(range(24))


def test_a_class_smaller_than_asked_for_comes_in_several_views() -> None:
    curriculum = Curriculum([0, 1, 2], recipe(*PLAIN, "data.samples_per_class=2"))
    (batch,) = list(curriculum)
    assert Counter(sample for sample, *_ in batch) == {0: 2, 1: 2, 2: 2}
    assert len({seed for _, seed, _ in batch}) == 6


def test_samples_of_a_rare_shape_come_as_often_as_others() -> None:
    # One sample of the second shape among 25; filled up to a batch of six each round, it would come six times as often.
    shapes = [0] * 24 + [1]
    settings = recipe(*PLAIN, "steps=6000")
    counts = Counter(flat(rounds(Curriculum([0] * 25, settings, shapes=shapes), steps=6000)))
    assert set(counts) == set(range(25))
    assert counts[24] == pytest.approx(36000 / 25, rel=0.25)


def test_a_class_each_of_a_hundred_thousand_is_dealt_out_in_a_moment() -> None:
    settings = recipe(*PLAIN, "data.samples_per_class=2")
    begun = time.process_time()
    curriculum = Curriculum(range(100_000), settings)
    # About a second; a pass over all samples for each class took minutes.
    assert time.process_time() - begun < 10
    assert all(counts == 2 for counts in Counter(curriculum.round.ravel().tolist()).values())


def test_processes_share_each_batch() -> None:
    whole = list(Curriculum(LABELS, recipe()))
    parts = [list(Curriculum(LABELS, recipe(), process=process, processes=2)) for process in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    assert all(len(a) == 3 for a in parts[0])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="dataset: got no samples"):
        Curriculum([], recipe())
    with pytest.raises(ValueError, match="batch_size: got 6, expected a multiple of the 4 processes"):
        Curriculum(LABELS, recipe(), processes=4)
    with pytest.raises(ValueError, match=r"curriculum\.difficulty: got teacher"):
        Curriculum(LABELS, recipe("curriculum.difficulty=teacher"))

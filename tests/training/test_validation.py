"""The best checkpoint, and the mAP that chooses it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hamlet.training import History, Terminated, train
from hamlet.training.validation import FolderValidation
from tests.training import tiny
from tests.training.runs import STEPS, assert_same_run
from tests.training.test_data import picture


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


class Growing:
    """A validation whose mAP is what it says; it counts how often it was asked."""

    def __init__(self, *found: float, digest: str = "some pictures") -> None:
        self.found, self.digest, self.asked = found, digest, 0

    def __call__(self, model: torch.nn.Module) -> float:
        self.asked += 1
        return self.found[self.asked - 1]


def go(out: Path, validate: Growing, every: int, stop_after: int, dataset: tiny.Blobs | None = None) -> History:
    return train(
        *(tiny.make(), tiny.recipe(f"validate_every={every}"), dataset or tiny.Blobs()),
        **{"out": out, "teacher": tiny.teacher(), "validate": validate, "progress": False, "stop_after": stop_after},  # type: ignore[arg-type]
    )


def test_best_begins_anew_with_other_pictures(tmp_path: Path) -> None:
    go(tmp_path, Growing(0.9, 0.8), 2, 4)
    go(tmp_path, Growing(0.7), 2, 6)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["extra"]["step"] == 2
    with pytest.warns(UserWarning, match=r"data\.validation holds other pictures than before"):
        go(tmp_path, Growing(0.3, 0.2, digest="others"), 2, 10)
    best = torch.load(tmp_path / "best.pt", weights_only=True)["extra"]
    assert (best["step"], best["map"]) == (8, 0.3)


def test_sigterm_saves_before_it_validates_and_the_next_run_validates(tmp_path: Path) -> None:
    class Ending(tiny.Blobs):
        def __getitem__(self, key: tuple[int, int, int]) -> torch.Tensor:
            if self.taken == 6 * 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(key)

    interrupted, after = Growing(0.1), Growing(0.2, 0.3)
    with pytest.raises(Terminated, match="terminated after step 4, which is saved"):
        go(tmp_path / "cut", interrupted, 4, STEPS, Ending())
    assert interrupted.asked == 0
    history = go(tmp_path / "cut", after, 4, 8)
    assert [record.get("validation/map") for record in history] == [None] * 3 + [0.2] + [None] * 3 + [0.3]
    go(tmp_path / "whole", Growing(0.2, 0.3), 4, 8)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_an_map_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validate: got nan after step 2, expected a finite mAP"):
        go(tmp_path, Growing(float("nan")), 2, 2)


def test_what_is_validated_is_known_by_its_content(tmp_path: Path) -> None:
    names = ("a/1.png", "a/2.png", "b/1.png")
    for folder in ("one", "other"):
        for place, name in enumerate(names):
            picture(tmp_path / folder / name, 40 * place)
    digests = [FolderValidation(tmp_path / folder, 32).digest for folder in ("one", "other")]
    digests.append(FolderValidation(tmp_path / "one", 48).digest)
    picture(tmp_path / "other/b/1.png", 200)
    digests.append(FolderValidation(tmp_path / "other", 32).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_validation_is_leave_one_out_map(photos: Path) -> None:
    class Brightness(torch.nn.Linear):
        def forward(self, images: Any) -> torch.Tensor:
            rows = torch.stack([image.mean((1, 2)) for image in images])
            return torch.stack([rows[:, 0], 1 - rows[:, 0]], 1)

    assert FolderValidation(photos, 64)(Brightness(1, 1)) == pytest.approx(1.0)
    # The brightest dark picture moved to the light ones. The others find their own first; the one that was moved finds
    # its own at the places 3, 4 and 5.
    (photos / "dark" / "2.png").rename(photos / "light" / "dark.png")
    moved = (1 / 3 + 2 / 4 + 3 / 5) / 3
    assert FolderValidation(photos, 64)(Brightness(1, 1)) == pytest.approx((5 + moved) / 6)
    for number in (1, 2):
        (photos / "light" / f"{number}.png").unlink()
    (photos / "light" / "dark.png").unlink()
    (photos / "dark" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"data\.validation: .* has one picture a class"):
        FolderValidation(photos, 64)

"""A loss that is not finite ends a run, which tells of what, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hamlet.training import DivergedError, train
from tests.training import tiny
from tests.training.runs import in_processes

PLAIN = ("curriculum.difficulty=none", "optimizer.lr=0.001")


@pytest.mark.parametrize("normalise", [False, True])
def test_a_view_that_is_not_finite_is_named_and_leaves_no_trace(tmp_path: Path, normalise: bool) -> None:
    # Batch norm spreads its NaN over all the batch and into its own running statistics.
    model, recipe = tiny.make(tiny.TinyConfig(normalise=normalise)), tiny.recipe(*PLAIN)
    with pytest.raises(DivergedError, match=r"at step \d: loss nan.* with samples 5 \(05\.jpg\);"):
        train(model, recipe, tiny.Blobs(spoilt=5), out=tmp_path, teacher=tiny.teacher(), progress=False)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert told["loss"] == "nan"
    assert len(told["batch"]) == recipe.batch_size
    spoilt = {entry["id"] for entry in told["batch"] if entry["loss"] == "nan"}
    assert spoilt == ({entry["id"] for entry in told["batch"]} if normalise else {"05.jpg"})


def test_no_sample_is_blamed_for_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = tiny.make()
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"at step 1: loss nan.* in the batch of samples \d"):
        train(model, tiny.recipe(*PLAIN), tiny.Blobs(), out=tmp_path, teacher=tiny.teacher(), progress=False)


def test_two_processes_end_together_and_describe_with_the_statistics_of_the_first(tmp_path: Path) -> None:
    in_processes("statistics", tmp_path)
    found = [torch.load(tmp_path / f"{process}.pt", weights_only=True) for process in range(2)]
    for before, described in found:
        assert before.isfinite().all()
        assert torch.equal(described, found[0][0])
    assert not torch.equal(found[0][0], found[1][0])

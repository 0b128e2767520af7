"""Several processes take the steps of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import assert_same_run, in_processes, kept


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
        ("unlabelled-two", "unlabelled-one"),
        *((f"alone-{n}", "alone-one") for n in ("parts", "two")),
    ]
    for one, other in pairs:
        found, expected = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in (one, other))
        assert found.keys() == expected.keys()
        assert len(expected) >= 8
        for name in expected:
            # By the length of each parameter's own gradient, however weak it is.
            length = float(expected[name].norm())
            assert length > 0, f"{one}: {name}"
            assert float((found[name] - expected[name]).norm()) <= 1e-5 * length, f"{one}: {name}"

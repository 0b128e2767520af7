"""A run of the small model, what is kept of it, and runs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from hamlet.training import History, train
from tests.training import tiny

STEPS = 20


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


def in_processes(what: str, out: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.training.processes", what, str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr

"""`hamlet evaluate` through its entry point, and a judge beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hamlet.models import create_model, save_checkpoint
from tests.evaluate.benchmarks import SIDE, Judge, hamlet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, create_model("gem_resnet18", descriptor_dim=16))
    return path


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Judge:
    return Judge(checkpoint)


@pytest.fixture
def evaluate(checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the command and return its JSON; what it prints as a table must hold the same numbers."""

    def run(dataset: str, data: Path, *flags: object) -> dict[str, Any]:
        line = ("evaluate", dataset, "--data", data, "--model", checkpoint, "--longest-side", SIDE, *flags)
        result = hamlet(*line, "--out", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        measured: dict[str, Any] = json.loads(result.stdout)
        shown = hamlet(*line, "--out", tmp_path / "out").stdout
        for values in measured["metrics"].values():
            assert all(value is None or f"{100 * value:.2f}" in shown for value in values.values())
        assert ("queries cropped" in shown) == measured["queries_cropped"]
        return measured

    return run

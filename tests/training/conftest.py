from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import run
from tests.training.test_data import picture


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three pictures."""
    for label, value in (("dark", 40), ("light", 220)):
        for number in range(3):
            picture(tmp_path / "photos" / label / f"{number}.png", value + number, size=(80, 70))
    return tmp_path / "photos"

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes, three pictures each."""
    for number, name in enumerate(("warm", "cold")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for other in range(3):
            picture = Image.new("RGB", (72, 64), (80 * number + 20, 60 * other, 90))
            picture.save(tmp_path / "photos" / name / f"{other}.png")
    return tmp_path / "photos"

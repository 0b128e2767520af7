"""A real browser, without a window: Debian's chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_INSTALL = (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"])
_INSTALL_SECONDS, _SHOW_SECONDS = 300, 120


class NoBrowser(Exception):
    """There is none, and none can be installed; the message says why."""


def find_or_install() -> str:
    """The browser's program, installed by apt if need be."""
    if found := shutil.which("chromium"):
        return found
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoBrowser("no chromium, and no apt-get or not the right to install it")
    for command in _INSTALL:
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_INSTALL_SECONDS,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise NoBrowser(f"no chromium, and it cannot be installed: {error}") from error
    if found := shutil.which("chromium"):
        return found
    raise NoBrowser("no chromium, though apt-get installed it")


def photograph(program: str, page: Path, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """What the browser, cut off from any network, draws of a page: int (height, width, 3)."""
    folder = page.parent
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size[0]},{size[1]}"]
    options += [f"--user-data-dir={folder / 'browser'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    shot = folder / "page.png"
    command = [program, *options, f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=_SHOW_SECONDS)
    return np.asarray(Image.open(shot).convert("RGB")).astype(int)

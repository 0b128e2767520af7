"""Milvus Lite for the tests, without the faiss-cpu that it names as its need: that lies in faiss-gpu's folder.

pip would overwrite the GPUs' faiss of whoever runs the tests. Milvus Lite works with either, so it is installed alone,
in a folder of its own that the test run removes; what else it needs is in `hamlet[test]`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

_SECONDS = 120


class NoMilvusLite(Exception):
    """There is none, and none can be installed; the message says why."""


def find_or_install(folder: Path) -> None:
    """Make `milvus_lite` importable, from ``folder`` if need be."""
    for needed in ("pymilvus", "pyarrow"):
        if importlib.util.find_spec(needed) is None:
            raise NoMilvusLite(f"no {needed}: pip install 'hamlet[test]'")
    if importlib.util.find_spec("milvus_lite") is not None:
        return
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        "milvus-lite>=3",
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NoMilvusLite(f"no Milvus Lite, and it cannot be installed: {error}") from error
    sys.path.append(str(folder))
    importlib.invalidate_caches()

"""Builds the CUDA sources for the CPU, as Python modules, with the C++ compiler alone; kept until they change."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
KEPT = ROOT / "build" / "cuda-on-cpu"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")

compiler = next((path for name in (os.environ.get("CXX"), "c++", "g++") if name and (path := shutil.which(name))), None)


def kernels(csrc: Path = CSRC, changed: str = "*") -> ModuleType:
    """All kernels, executed on the CPU. Those that ``changed`` matches are taken from ``csrc``, a changed copy."""
    ours = CSRC / "cuda"
    kernels = [csrc / "cuda" / path.name if path.match(changed) else path for path in sorted(ours.glob("*.cu"))]
    return load("cuda_on_cpu", [*kernels, ours / "binding.cpp", ours / "host" / "module.cpp"], csrc)


def load(name: str, sources: Sequence[Path], csrc: Path = CSRC) -> ModuleType:
    """The Python module ``name`` made of ``sources`` and what executes kernels."""
    host = [CSRC / "cuda" / "host" / file for file in ("execution.cpp", "memory.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(partial(_object, csrc), (*sources, *host)))
    digest = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    library = KEPT / digest / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    _make(library, ["-shared", *map(str, objects)])
    # pybind11 keeps modules by their full name: another build must have another.
    specification = importlib.util.spec_from_file_location(f"{digest}.{name}", library)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _object(csrc: Path, source: Path) -> Path:
    csrc = csrc if source.is_relative_to(csrc) else CSRC
    digest = hashlib.sha256(repr((FLAGS, compiler, source.name)).encode())
    for path in (source, *sorted(csrc.rglob("*.h"))):
        digest.update(path.read_bytes())
    made = KEPT / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    includes = [f"-I{path}" for path in (csrc, pybind11.get_include(), sysconfig.get_paths()["include"])]
    _make(made, [*FLAGS, *includes, "-x", "c++", "-c", str(source)])
    return made


def _make(target: Path, arguments: list[str]) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([str(compiler), *arguments, "-o", str(beside)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    beside.replace(target)

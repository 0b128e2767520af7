"""The compiled kernels' build, and how the instruction set is chosen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hamlet.ops.native import library

ROOT = Path(__file__).parents[1]
CODE = (
    "from hamlet.ops.native.library import module, why_missing; print(module and module.instruction_set(), why_missing)"
)


def test_the_instruction_set_is_taken_from_the_environment():
    pytest.importorskip("hamlet._native", reason="there was no C++ compiler to build the native kernels with")

    def answer(value):
        environment = os.environ | {"HAMLET_CPU_ISA": value}
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert answer("baseline").startswith("baseline None")
    assert "HAMLET_CPU_ISA: got 'mmx', expected one of those that this processor has: baseline" in answer("mmx")


def test_a_module_that_cannot_be_loaded_says_why():
    pytest.importorskip("hamlet._native", reason="there was no C++ compiler to build the native kernels with")
    strange = f"import torch; del torch.Tensor.__dlpack_c_exchange_api__; {CODE}"
    done = subprocess.run([sys.executable, "-c", strange], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("None the native kernels cannot be loaded: ")
    assert "__dlpack_c_exchange_api__" in done.stdout


def test_without_a_compiler_the_build_goes_on_and_says_why(tmp_path):
    pytest.importorskip("setuptools", reason="the build is run by hand here, without pip's own setuptools")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for package in ("hamlet", "kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the native kernels were not built: " in done.stderr
    reason = (tmp_path / "hamlet" / library.WHY_NOT_BUILT.name).read_text()
    assert "cmake" in reason

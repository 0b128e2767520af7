"""Builds csrc/ with CMake and ninja; all metadata is in pyproject.toml.

Without a compiler the installation goes on, and what kept the native kernels from being built is written where
``hamlet info`` finds it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
REASON = "_native.txt"


class CMakeBuild(build_ext):
    """One extension, made by csrc/CMakeLists.txt."""

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        reason = target.with_name(REASON)
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in (target, reason):
            stale.unlink(missing_ok=True)
        try:
            self._build(target)
        except (OSError, subprocess.CalledProcessError) as error:
            reason.write_text(f"{_explained(error)}\n")
            print(f"hamlet: the native kernels were not built: {_explained(error)}", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        """For an editable installation: what was built, or why it was not, beside the sources."""
        package = ROOT / "hamlet"
        for stale in package.glob("_native*"):
            stale.unlink()
        super().copy_extensions_to_source()
        for reason in Path(self.build_lib).glob(f"hamlet/{REASON}"):
            shutil.copy2(reason, package)

    def _build(self, target: Path) -> None:
        """With the CUDA kernels if they can be built, else with the reason why not."""
        try:
            self._cmake(target, "")
        except subprocess.CalledProcessError as error:
            self._cmake(target, _explained(error))

    def _cmake(self, target: Path, why_no_cuda: str) -> None:
        import pybind11

        build = ROOT / "build" / sys.implementation.cache_tag / "csrc"
        # What an earlier build remembers of its temporary environment is gone by now; what it compiled is not.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        for compilers in build.glob("CMakeFiles/[0-9]*"):
            shutil.rmtree(compilers)
        configure = [
            "cmake", "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DHAMLET_DEBUG={'ON' if os.environ.get('HAMLET_DEBUG') == '1' else 'OFF'}",
            f"-DHAMLET_CUDA_ARCHS={os.environ.get('HAMLET_CUDA_ARCHS', '').replace(' ', ';')}",
            f"-DHAMLET_CUDA_WHY_NOT={_plain(why_no_cuda)}",
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", str(build)]):
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        shutil.copy2(next(build.glob(f"{target.name.split('.')[0]}*")), target)

    def get_outputs(self) -> list[str]:
        # A wheel must not look for a module that could not be built.
        return [name for name in super().get_outputs() if Path(name).exists()]


def _explained(error: OSError | subprocess.CalledProcessError) -> str:
    """The line of a build's output that says most about why it failed."""
    if isinstance(error, OSError):
        return str(error)
    lines = [line.strip() for line in error.stdout.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "not found" in line.lower() or "No " in line]
    return "; ".join((telling or lines or [str(error)])[:3])


def _plain(text: str) -> str:
    """``text`` without what CMake, a shell or C++ would take for anything but a letter of a string."""
    return re.sub(r"[^\w .,:/()=+-]", " ", text)[:300]


setup(ext_modules=[Extension("hamlet._native", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})

"""What `hamlet info` tells: versions, devices, instruction sets, and which backend serves each operator here; and of
what commit the code is."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "torchvision", "timm", "faiss-gpu", "faiss-cpu", "accelerate", "pytorch-metric-learning")
UNVERSIONED = "unversioned"


def describe() -> dict[str, Any]:
    """This installation as plain data: "versions", "devices", "instruction_sets", "operators", "models",
    "unavailable" (method -> reason), "recipes".

    "operators" gives, for each operator and device, every backend with the list of reasons why it cannot serve small
    float32 tensors there; an empty list means that it can.

    Example:
        >>> describe()["operators"]["dynamic_conv2d"]["cpu"]["reference"]
        []
    """
    from hamlet.models import UNAVAILABLE, list_models
    from hamlet.training import list_recipes

    return {
        "versions": _versions(),
        "devices": _devices(),
        "instruction_sets": _instruction_sets(),
        "operators": _operators(),
        "models": list_models(),
        "unavailable": UNAVAILABLE,
        "recipes": list_recipes(),
    }


def processor() -> str:
    """The processor's name, family and model, as many as the system tells, or else its kind.

    A virtual machine's processor may be named after its maker alone, whatever its generation.
    """
    info = Path("/proc/cpuinfo")
    first = info.read_text(encoding="utf-8").partition("\n\n")[0] if info.is_file() else ""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    generation = ", ".join(f"{name.split()[-1]} {told[name]}" for name in ("cpu family", "model") if name in told)
    return f"{told['model name']} ({generation})" if generation else told["model name"]


def machine() -> str:
    """This machine, the threads of a process and PyTorch's version, in words."""
    import torch

    return f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> dict[str, Any]:
    """The git commit that this code is of, "id", and whether anything was changed since, "dirty".

    The id is :data:`UNVERSIONED` where the package lies in no checkout of its own; pytest-benchmark takes this for its
    ``commit_info``, as its own takes no notice of new files.
    """
    # A package that was installed below someone else's checkout is not of that one's commit.
    if not _git("ls-files", Path(__file__).name):
        return {"id": UNVERSIONED, "dirty": False}
    return {"id": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def commit_line(commit: Mapping[str, Any]) -> str:
    """What :func:`commit` gave, in words.

    >>> commit_line({"id": "0123456789abcdef", "dirty": True})
    'commit 0123456789ab, dirty tree'
    """
    return f"commit {commit['id'][:12]}{', dirty tree' if commit['dirty'] else ''}"


def version() -> str:
    """The version of this package in words, with the commit where there is one."""
    known = commit()
    told = f", {commit_line(known)}" if known["id"] != UNVERSIONED else ""
    return f"hamlet {importlib.metadata.version('hamlet')}{told}"


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("hamlet", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 2**30
        found[f"cuda:{number}"] = f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
    return found


def _instruction_sets() -> dict[str, str]:
    import torch

    from hamlet.ops.cuda import library as cuda
    from hamlet.ops.native.library import module, why_missing

    found = {"cpu": torch.backends.cpu.get_cpu_capability()}
    if module is None:
        found["native kernels"] = str(why_missing)
    else:
        found["native kernels"] = f"{module.instruction_set()}, of {', '.join(module.instruction_sets())}"
    found["cuda kernels"] = (
        cuda.why_missing() or f"for compute capability {', '.join(cuda.kernels.architectures.split())}"
    )
    if torch.cuda.is_available():
        found["cuda"] = " ".join(torch.cuda.get_arch_list())
    return found


def _operators() -> dict[str, dict[str, dict[str, list[str]]]]:
    import torch

    from hamlet import ops

    def attention(device: str) -> dict[str, list[str]]:
        query, key = torch.ones(1, 4, 4, 1, 8, device=device), torch.ones(1, 2, 2, 1, 8, device=device)
        return ops.explain(ops.cross_scale_attention, query, key, key, radius=1.0, max_radius=1.0)

    def pyramid(device: str) -> dict[str, list[str]]:
        levels = [torch.ones(1, 4, 4, 1, 8, device=device), torch.ones(1, 2, 2, 1, 8, device=device)]
        ones = [[1.0, 1.0], [1.0, 1.0]]
        return ops.explain(ops.pyramid_attention, levels, levels, levels, radius=ones, max_radius=ones)

    def convolution(device: str) -> dict[str, list[str]]:
        image, weight = torch.ones(1, 4, 4, 4, device=device), torch.ones(1, 4, 1, 3, 3, device=device)
        return ops.explain(ops.dynamic_conv2d, image, weight, groups=4)

    examples: dict[str, Callable[[str], dict[str, list[str]]]] = {
        "cross_scale_attention": attention,
        "pyramid_attention": pyramid,
        "dynamic_conv2d": convolution,
    }
    devices = ["cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return {name: {device: example(device) for device in devices} for name, example in examples.items()}

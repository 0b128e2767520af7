"""What was measured on, and what was measured: for the JSON, and as one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.clock import DEVICE
from hamlet.environment import describe as describe_installation
from hamlet.environment import processor


def describe() -> dict[str, Any]:
    """For pytest-benchmark's ``machine_info``, under the key "hamlet"."""
    installation = describe_installation()
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else processor(),
        "kind": DEVICE.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": installation["instruction_sets"],
        "versions": installation["versions"],
    }


def commit() -> dict[str, Any]:
    """For pytest-benchmark's ``commit_info``: its own takes no notice of new files."""
    return {"id": _git("rev-parse", "HEAD") or "unversioned", "dirty": bool(_git("status", "--porcelain"))}


def line(machine: Mapping[str, Any], commit: Mapping[str, Any]) -> str:
    """What :func:`describe` and :func:`commit` gave, in one line."""
    versions, sets = machine["versions"], machine["instruction_sets"]
    kept = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm") if name in versions)
    dirty = ", dirty tree" if commit["dirty"] else ""
    return (
        f"{machine['device']}, {machine['cores']} cores ({machine['threads']} threads), {sets['cpu']} "
        f"(native kernels: {sets['native kernels'].split(',')[0]}), {machine['memory_gib']} GiB; {kept}, "
        f"Python {versions['python']}; commit {commit['id'][:12]}{dirty}"
    )


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

"""What was measured on, and what was measured: for the JSON, and as one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from bench.clock import DEVICE
from hamlet.environment import commit_line, processor
from hamlet.environment import describe as describe_installation


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


def line(machine: Mapping[str, Any], commit: Mapping[str, Any]) -> str:
    """What :func:`describe` and :func:`hamlet.environment.commit` gave, in one line."""
    versions, sets = machine["versions"], machine["instruction_sets"]
    kept = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm") if name in versions)
    return (
        f"{machine['device']}, {machine['cores']} cores ({machine['threads']} threads), {sets['cpu']} "
        f"(native kernels: {sets['native kernels'].split(',')[0]}), {machine['memory_gib']} GiB; {kept}, "
        f"Python {versions['python']}; {commit_line(commit)}"
    )

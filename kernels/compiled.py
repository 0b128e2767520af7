"""What a kernel becomes on a GPU that need not be there: compiled ahead of time, read back from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hamlet.kernels.variants import Variant

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What programs share: registers of 32 bits, bytes of shared memory (some for the system), warps and programs."""

    registers: int = 65536
    shared: int = 228 * 1024
    reserved: int = 1024
    warps: int = 64
    programs: int = 32


MULTIPROCESSORS = {80: Multiprocessor(shared=164 * 1024), 90: Multiprocessor(), 100: Multiprocessor()}
"""By compute capability, in tenths."""


@dataclass(frozen=True)
class Compiled:
    """One variant's machine code.

    Args:
        registers: of a thread.
        stack: bytes of a thread's stack, which lies in local memory.
        local: instructions that load from or store to local memory, as spilled registers do.
        shared: bytes of a program's shared memory.
        warps: of a program.
        matrix: matrix instructions by name.
        loads: instructions that load from global memory, by their width in bits; 0 stands for the copy engine's.
        resident: warps that one multiprocessor holds at a time.
    """

    registers: int
    stack: int
    local: int
    shared: int
    warps: int
    matrix: dict[str, int]
    loads: dict[int, int]
    resident: int


def compile_kernel(variant: Variant, arch: int) -> Any:
    """Triton's kernel for compute capability ``arch`` / 10; needs no GPU."""
    place = {name: (index,) for index, name in enumerate(variant.signature)}
    attributes = {place[name]: [["tt.divisibility", divisor]] for name, divisor in variant.attributes.items()}
    source = ASTSource(variant.function, dict(variant.signature), dict(variant.constants), attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, WARP), options=options)


def compile_variant(variant: Variant, arch: int) -> Compiled:
    """The same, as its machine code tells it."""
    kernel = compile_kernel(variant, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (_disassemble(option, file.name) for option in ("--dump-resource-usage", "--dump-sass"))
    registers, stack = (int(_only(rf"{name}:(\d+)", usage)) for name in ("REG", "STACK"))
    instructions = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code))
    shared, warps = int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    return Compiled(
        registers,
        stack,
        sum(count for name, count in instructions.items() if name.startswith(("LDL", "STL"))),
        shared,
        warps,
        _matrix(instructions),
        _loads(instructions),
        resident_warps(MULTIPROCESSORS[arch], registers, shared, warps),
    )


def resident_warps(multiprocessor: Multiprocessor, registers: int, shared: int, warps: int) -> int:
    """How many warps of such programs are on a multiprocessor at a time, whichever resource runs out first."""
    of_warp = -(-registers * WARP // 256) * 256  # registers are given out 256 at a time
    return warps * min(
        multiprocessor.registers // of_warp // warps,
        multiprocessor.shared // (shared + multiprocessor.reserved),
        multiprocessor.warps // warps,
        multiprocessor.programs,
    )


def _disassemble(option: str, path: str) -> str:
    return subprocess.run([DISASSEMBLER, option, path], check=True, capture_output=True, text=True).stdout


def _only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return str(found)


def _matrix(instructions: Counter[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in instructions.items():
        if match := re.match(r"(HMMA|HGMMA|UTC\w*MMA)\b", name):
            found[match[1]] += count
    return dict(sorted(found.items()))


def _loads(instructions: Counter[str]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for name, count in instructions.items():
        if name.startswith(("UTMALDG", "UBLKCP")):
            found[0] += count
        elif name.startswith(("LDG.", "LDGSTS.")):
            width = re.search(r"\.[US]?(8|16|64|128)(?:\.|$)", name)
            found[int(width[1]) if width else 32] += count
    return dict(sorted(found.items(), reverse=True))

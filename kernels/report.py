"""What every kernel that a launch table can choose becomes, for GPUs that need not be there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import triton

from hamlet.kernels.compiled import MULTIPROCESSORS, Compiled, compile_variant
from hamlet.kernels.variants import Variant

EXPLANATION = """Registers and bytes of stack of a thread; instructions that touch local memory, as spills do;
bytes of shared memory and warps of a program; warps that a multiprocessor holds at a time; matrix instructions; and
instructions that load from global memory, by their width."""
NAME = 68
COLUMNS = ("registers", "stack", "local", "shared", "warps", "resident")


def all_variants() -> Iterator[Variant]:
    """Those of every module of this package that has any."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        found = getattr(import_module(f"hamlet.kernels.{module.name}"), "variants", None)
        if callable(found):
            yield from found()


def line(variant: Variant, compiled: Compiled) -> str:
    """A kernel's figures as they are printed, under COLUMNS."""
    numbers = "  ".join(f"{getattr(compiled, column):>{len(column)}}" for column in COLUMNS)
    matrix = [f"{count} {name}" for name, count in compiled.matrix.items()]
    loads = [f"{count} x {width // 8} B" if width else f"{count} bulk" for width, count in compiled.loads.items()]
    return f"{variant.name:{NAME}}  {numbers}  {' '.join(matrix) or '-':12}  {', '.join(loads) or '-'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hamlet.kernels.report", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", choices=list(MULTIPROCESSORS), default=list(MULTIPROCESSORS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    chosen = parser.parse_args()
    figures: dict[str, dict[str, object]] = {}
    print(f"Triton {triton.__version__}. {EXPLANATION}")
    for arch in chosen.arch:
        print(f"\nsm_{arch}{'':{NAME - 5}}  {'  '.join(COLUMNS)}  {'matrix':12}  global loads")
        for variant in all_variants():
            compiled = compile_variant(variant, arch)
            print(line(variant, compiled), flush=True)
            figures.setdefault(f"sm_{arch}", {})[variant.name] = dataclasses.asdict(compiled)
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

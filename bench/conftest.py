from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import harness, table

_comparisons = pytest.StashKey[list[harness.Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure at full size, compiled peers included; without it bench/ is a quick check that everything runs",
    )
    parser.addoption("--tables", type=Path, metavar="FILE", help="write the tables of --benchmark to FILE too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_comparisons] = []
    # pytest-benchmark's own table knows one contender a case: ours shows them all.
    config.option.benchmark_quiet = True


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to measure at full size."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture(autouse=True)
def stance(full: bool) -> Iterator[None]:
    """Without --benchmark the compiled peers run as they are written, uncompiled: compiling takes minutes."""
    torch.manual_seed(0)
    with torch.compiler.set_stance("default" if full else "force_eager"):
        yield
    torch.compiler.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        pytest.skip("torch has one thread in every case")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> list[harness.Comparison]:
    """Comparisons put here are in the table at the end."""
    return request.config.stash[_comparisons]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    comparisons = config.stash.get(_comparisons, [])
    if comparisons and config.getoption("--benchmark"):
        machine = harness.machine()
        table.show(comparisons, machine)
        if path := config.getoption("--tables"):
            with path.open("w", encoding="utf-8") as file:
                table.show(comparisons, machine, Console(width=table.WIDTH, file=file))

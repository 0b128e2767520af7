from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench import clock, machine, table
from bench.comparison import Comparison
from bench.harness import FULL, QUICK, Effort
from hamlet.environment import commit

_comparisons = pytest.StashKey[list[Comparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure at full size, compiled peers included; without it bench/ is a quick check that everything runs",
    )
    parser.addoption("--scale", type=int, metavar="N", help="descriptors in the cases of retrieval, up to millions")
    parser.addoption("--tables", type=Path, metavar="FILE", help="write the tables of --benchmark to FILE too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_comparisons] = []
    # pytest-benchmark's own table knows one contender a case: ours shows them all. It alone compares with an older run.
    config.option.benchmark_quiet = not config.option.benchmark_compare


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    if ours and (backend := os.environ.get("HAMLET_BACKEND")):
        raise pytest.UsageError(
            f"HAMLET_BACKEND={backend} is set: bench/ measures what a user gets without it; unset it"
        )
    for item in ours:
        item.add_marker(pytest.mark.benchmark(timer=clock.now))
        # Uncompiled is how it is meant to run without --benchmark.
        item.add_marker(pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["hamlet"] = machine.describe()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    commit_info.update(commit())


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to measure at full size."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture
def effort(full: bool) -> Effort:
    return FULL if full else QUICK


@pytest.fixture
def sized(full: bool) -> Callable[[Any], Any]:
    """The case as it is, or a small one like it."""
    return lambda case: case if full else case.small()


@pytest.fixture(autouse=True)
def stance(full: bool) -> Iterator[None]:
    """Without --benchmark the compiled peers run as they are written, uncompiled: compiling takes minutes."""
    torch.manual_seed(0)
    with torch.compiler.set_stance("default" if full else "force_eager"):
        yield
    if full:
        torch.compiler.reset()
        gc.collect()


@pytest.fixture(autouse=True)
def ieee() -> Iterator[None]:
    """float32 is float32 for everybody: PyTorch's own default lets cuDNN round the factors of convolutions to tf32."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1 or clock.DEVICE.type != "cpu":
        pytest.skip("torch has one thread in every case, or a GPU does the work")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def judged(request: pytest.FixtureRequest, full: bool) -> Callable[[Comparison], None]:
    """Puts a comparison into the table at the end, and fails where HAMLET could not do it, or anybody did it wrong.

    At full size a peer's error is its own, which the table shows: half precision may be too coarse for how it sums.
    """

    def judge(comparison: Comparison) -> None:
        request.config.stash[_comparisons].append(comparison)
        failed = {outcome.name: outcome.problem for outcome in comparison.outcomes if outcome.problem}
        assert not {name: why for name, why in failed.items() if name.startswith("HAMLET")}
        assert full or not {name: why for name, why in failed.items() if why.startswith("wrong")}

    return judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    comparisons = config.stash.get(_comparisons, [])
    if not (comparisons and config.getoption("--benchmark")):
        return
    line = machine.line(machine.describe(), commit())
    table.show(comparisons, line)
    if path := config.getoption("--tables"):
        with path.open("w", encoding="utf-8") as file:
            table.show(comparisons, line, Console(width=table.WIDTH, file=file))

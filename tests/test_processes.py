from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import distributed

from hamlet import processes
from hamlet.cli import main


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    processes._group.cache_clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_group_of_gloo_is_ended_with_all_its_own() -> None:
    within = processes._group()
    processes.end_group()
    assert not distributed.is_initialized()
    assert within not in distributed.distributed_c10d._world.pg_map
    processes.end_group()  # there is none left


@pytest.mark.usefixtures("group_of_one")
def test_of_a_group_of_nccl_what_waits_for_nobody_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    within = processes._group()
    monkeypatch.setattr(distributed, "get_backend", lambda: "nccl")
    processes.end_group()
    assert distributed.is_initialized()
    assert within not in distributed.distributed_c10d._world.pg_map


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["index"], 2)])
def test_the_command_ends_the_group_after_success_alone(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    ended = []
    monkeypatch.setattr("hamlet.cli.commands.end_group", lambda: ended.append(True))
    monkeypatch.setattr(sys, "argv", ["hamlet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0, ended) == (code, [] if code else [True])

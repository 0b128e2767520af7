"""Extractions in processes of their own, forked from one that has imported everything: to be killed, or to share.

``python -m tests.retrieval.processes SCENE FOLDER``, the scene being the name of a function at the end of this file.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hamlet import processes
from hamlet.images import list_images
from hamlet.retrieval import shards
from hamlet.retrieval.extraction import extract
from tests.retrieval.conftest import Descriptor

KILLS, SHARD = 10, 4


class Logged(Descriptor):
    """Slow enough to be killed at work; leaves a line for each batch, with its size."""

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__()
        self.log, self.seconds = log, seconds

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        with self.log.open("a") as file:
            file.write(f"{len(images)}\n")
        time.sleep(self.seconds)
        return super().forward(images)


def start(
    folder: Path, out: str, log: str, *, seconds: float = 0.0, workers: int = 0, keep: bool = True, **environment: str
) -> int:
    """Fork an extraction of ``folder/in`` to ``folder/out``, whose first process may remove the result; the process."""
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(environment)
        options: dict[str, Any] = {"batch_size": 2, "shard_size": SHARD, "workers": workers, "progress": False}
        extract(Logged(folder / log, seconds), list_images(folder / "in"), folder / out, **options)
        if not keep and processes.rank() == 0:
            shutil.rmtree(folder / out)
        processes.end_group()
    except ValueError as error:
        print(error, flush=True)
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed(folder: Path) -> None:
    """One extraction to its end, and one that is killed at ten random moments and begun again each time."""
    assert finish(start(folder, "whole", "whole.log")) == 0
    chance = random.Random(0)
    for _ in range(KILLS):
        goal = lines(folder / "killed.log") + chance.randrange(7)
        process = start(folder, "killed", "killed.log", seconds=0.004, workers=chance.randrange(2))
        while lines(folder / "killed.log") < goal:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        os.kill(process, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
    assert finish(start(folder, "killed", "killed.log")) == 0


def shared(folder: Path) -> None:
    """One extraction by one process, the same by two, and by two that do not reach the same folder."""
    assert finish(start(folder, "one", "one.log")) == 0
    assert [finish(process) for process in pair(folder, "two", "two")] == [0, 0]
    assert finish(pair(folder, "here", "there")[1]) == 3


def removed(folder: Path) -> None:
    """Two processes, of which the first removes the result as soon as it has it, and the other is late to read it."""
    read = shards.read

    def late(out: Path, settings: Mapping[str, Any]) -> shards.Extraction | None:
        time.sleep(0.5 * processes.rank())
        return read(out, settings)

    shards.read = late
    assert [finish(process) for process in pair(folder, "out", "out", keep=False)] == [0, 0]


def pair(folder: Path, *outs: str, keep: bool = True) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(folder, out, f"{out}{rank}.log", keep=keep, RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank, out in enumerate(outs)
    ]


def disturbed(folder: Path) -> None:
    """An extraction beside which another begins in the same folder."""
    process = start(folder, "out", "first.log", seconds=0.02)
    while lines(folder / "first.log") < 2:
        time.sleep(0.001)
    assert finish(start(folder, "out", "second.log")) == 3
    assert finish(process) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    shards.PATIENCE = 0.2
    {"killed": killed, "shared": shared, "removed": removed, "disturbed": disturbed}[sys.argv[1]](Path(sys.argv[2]))

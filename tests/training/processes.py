"""Runs in processes of their own, forked from one that has imported everything: to be killed, or to work together.

``python -m tests.training.processes killed OUT`` or ``... two OUT``.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

from tests.training import tiny

STEPS = 180
LONG = (f"steps={STEPS}", "checkpoint_every=7")
PLAIN = ("plain", "steps=6", "stages=[{coarse: 0.5, budget: 0.1}]", "optimizer.name=sgd")
"""Without what looks at the batch as a whole (batch norm, similarities) or draws by process (dropout)."""


def start(out: Path, settings: tuple[str, ...], **environment: str) -> int:
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(environment)
        tiny.main(str(out), *settings)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finish(*processes: int) -> None:
    for process in processes:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed(out: Path) -> None:
    """One run to its end, and one that is killed at random moments and begun again."""
    finish(start(out / "whole", LONG))
    chance = random.Random(0)
    history = out / "killed" / "history.jsonl"
    for goal in (1, 25, 50, 75):
        goal += chance.randrange(20)
        process = start(out / "killed", LONG)
        while lines(history) < goal:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert goal <= lines(history) < STEPS
    finish(start(out / "killed", LONG))


def two(out: Path) -> None:
    """One run in one process, and the same in two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(out / "two", PLAIN, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    finish(*ranks, start(out / "one", PLAIN))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "two": two}[sys.argv[1]](Path(sys.argv[2]))

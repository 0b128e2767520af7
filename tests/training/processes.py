"""Runs in processes of their own, forked from one that has imported everything: to be killed, or to work together.

``python -m tests.training.processes NAME OUT``, with the name of one of its functions.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hamlet.training import DivergedError, Terminated
from hamlet.training.engine import Engine
from hamlet.training.loop import aligned
from hamlet.training.schedule import moment
from tests.training import tiny

STEPS = 180
LONG = (f"steps={STEPS}", "checkpoint_every=7")
PLAIN = ("plain", "steps=6", "optimizer.name=sgd")
"""All losses, without what each process has of its own: batch norm's statistics and dropout."""
SAMPLED = ("loss.sampled_classes=4", "loss.classifier=madacos")


def start(task: Callable[[], object], **environment: str) -> int:
    process = os.fork()
    if process:
        return process
    try:
        os.environ.update(environment)
        task()
    except Terminated as terminated:
        os._exit(terminated.code)  # type: ignore[arg-type]
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def training(out: Path, *settings: str) -> Callable[[], object]:
    return lambda: tiny.main(str(out), *settings)


def pair(task: Callable[[], object]) -> list[int]:
    """Two processes that work together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(task, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]


def finish(*processes: int, code: int = 0) -> None:
    for process in processes:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for(history: Path, goal: int, process: int) -> None:
    while lines(history) < goal:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.001)


def killed(out: Path) -> None:
    """One run to its end, and one that is killed at random moments and begun again."""
    finish(start(training(out / "whole", *LONG)))
    chance = random.Random(0)
    history = out / "killed" / "history.jsonl"
    for goal in (1, 25, 50, 75):
        goal += chance.randrange(20)
        process = start(training(out / "killed", *LONG))
        wait_for(history, goal, process)
        time.sleep(chance.random() * 0.02)
        os.kill(process, signal.SIGKILL)
        finish(process, code=-signal.SIGKILL)
        assert goal <= lines(history) < STEPS
    finish(start(training(out / "killed", *LONG)))


def two(out: Path) -> None:
    """One run in one process and in two; and with dropout and batch norm, one of two that were stopped and went on."""
    finish(*pair(training(out / "two", *PLAIN)), start(training(out / "one", *PLAIN)))
    finish(*pair(training(out / "whole")), *pair(training(out / "resumed", "stop_after=7")))
    finish(*pair(training(out / "resumed")))


def terminated(out: Path) -> None:
    """A run of two processes, one of which gets SIGTERM, begun again; and a run to its end."""
    settings = ("steps=120", "checkpoint_every=1000", "data.workers=1")
    processes = pair(training(out / "terminated", *settings))
    wait_for(out / "terminated" / "history.jsonl", 20, processes[0])
    os.kill(processes[1], signal.SIGTERM)
    finish(*processes, code=143)
    assert 20 <= lines(out / "terminated" / "history.jsonl") < 120
    finish(*pair(training(out / "terminated", *settings)), *pair(training(out / "whole", *settings)))


def gradients(out: Path) -> None:
    """The gradients of a step: in one process, in two, and, without losses that compare samples, in three parts."""
    alone = tuple(f"stages.{stage}.{loss}=0" for stage in (0, 1) for loss in ("hierarchy", "consistency"))

    def task(name: str, *settings: str) -> Callable[[], object]:
        return lambda: _write_gradients(out / f"{name}.pt", settings)

    for kind, settings in (("all", ()), ("sampled", SAMPLED), ("unlabelled", ("unlabelled",))):
        finish(start(task(f"{kind}-one", *settings)), *pair(task(f"{kind}-two", *settings)))
    finish(start(task("alone-one", *alone)), start(task("alone-parts", *alone, "accumulate=3")))
    finish(*pair(task("alone-two", *alone, "accumulate=3")))


def statistics(out: Path) -> None:
    """What two processes have in batch norm after a loss that was not finite, and what they validate with."""
    finish(*pair(lambda: _write_statistics(out)))


def _write_statistics(out: Path) -> None:
    recipe = tiny.recipe("curriculum.difficulty=none", "optimizer.lr=0.001")
    dataset = tiny.Blobs()
    engine = Engine(tiny.make(), recipe, dataset, aligned(tiny.teacher(), dataset), out / "run")
    try:
        while True:
            for samples, images in engine.loader:
                engine.train_step(samples, images)
                dataset.spoilt = 5 if engine.step > 1 else None
    except DivergedError:
        before = engine.model.norm.running_mean.clone()
    found: list[Tensor] = []

    def describe(model: Any) -> float:
        found.append(model.norm.running_mean.clone())
        return 0.5

    engine.validate(describe)
    torch.save([before, *found], out / f"{engine.accelerator.process_index}.pt")


def _write_gradients(path: Path, settings: tuple[str, ...]) -> None:
    recipe = tiny.recipe("loss.scale=3.0", *(each for each in settings if each != "unlabelled"))
    model = tiny.make(tiny.TinyConfig(dropout=0.0, normalise=False))
    dataset = tiny.Blobs()
    if "unlabelled" in settings:  # a third of the samples have no coarser label
        dataset.hierarchy = [[-1 if sample % 3 == 0 else sample // 8 for sample in range(len(dataset))]]
    engine = Engine(model, recipe, dataset, aligned(tiny.teacher(), dataset), path.parent / "none")
    for samples, images in engine.loader:
        targets = engine.targets.of(samples)
        engine._backward(images, targets, moment(recipe.stages, recipe.steps - 1, recipe.steps))
        break
    learner = engine.accelerator.unwrap_model(engine.learner)
    found = {name: each.grad for name, each in learner.named_parameters() if each.grad is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    if engine.accelerator.is_main_process:
        torch.save(found, path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tasks = (killed, two, terminated, gradients, statistics)
    {task.__name__: task for task in tasks}[sys.argv[1]](Path(sys.argv[2]))

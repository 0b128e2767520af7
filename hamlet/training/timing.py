"""Where a step's time goes: data, forward, backward, communication, optimiser."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

PARTS = ("data", "forward", "backward", "communication", "optimizer")
Item = TypeVar("Item")


class StepTimer:
    """The seconds that the parts of a step take; they add up to the step's.

    A part ends when the device is done with it, so measuring waits for the device at the end of each, where the loop
    waits twice a step anyway, to look at the loss and the gradient's norm. Communication is what the loop's own
    exchanges take, and what is left of the gradients' after the last of them was ready to be sent: the rest of it hides
    behind the backward. What losses that compare samples exchange is counted as forward and backward, and the exchange
    of a step's labels, where classes are sampled, as data.

    Args:
        device: that the model is on.

    Example:
        >>> timer = StepTimer(torch.device("cpu"))
        >>> with timer.part("forward"):
        ...     time.sleep(0.01)
        >>> timer.take()["forward"] >= 0.01
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last_gradient: Any = None
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def waited_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time that each takes to come is the data's."""
        iterator = iter(items)
        while True:
            with self.part("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in this block, until the device is done with it, towards a part."""
        begun = time.perf_counter()
        yield
        done = self._now()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self._seconds[name] += time.perf_counter() - begun
        if name == "backward" and self._last_gradient is not None:
            left = done - self._last_gradient if self.device.type == "cpu" else self._elapsed(done)
            self._seconds["backward"] -= left
            self._seconds["communication"] += left
            self._last_gradient = None

    def take(self) -> dict[str, float]:
        """The seconds of each part since the last call."""
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def watch(self, learner: nn.Module) -> None:
        """Note when the gradients of a distributed module are ready to be sent; they are averaged as they were."""
        if isinstance(learner, DistributedDataParallel):
            learner.register_comm_hook(None, self._gradients_are_ready)

    # DistributedDataParallel looks at these annotations, so they cannot be text.
    def _gradients_are_ready(self, state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self._last_gradient = self._now()
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def _elapsed(self, done: Any) -> float:
        return float(self._last_gradient.elapsed_time(done)) / 1000

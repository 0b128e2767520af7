"""What is timed: a function on its tensors, forward, or forward and backward.

On a GPU each run is the replay of a CUDA graph, and takes the next of several copies of the inputs, enough that the
device's cache holds none of what the run reads or writes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.clock import DEVICE

Run = Callable[[], Any]
Once = Callable[[list[Tensor]], list[Tensor]]
WARM_UPS = 3
MOST_COPIES = 8


def forward(function: Callable[..., Tensor], tensors: list[Tensor]) -> Run:
    def once(given: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [function(*given)]

    return once_each(once, tensors)


def forward_backward(function: Callable[..., Tensor], tensors: list[Tensor], incoming: Tensor) -> Run:
    def once(given: list[Tensor]) -> list[Tensor]:
        out = function(*given)
        return [out.detach(), *torch.autograd.grad(out, given, incoming.to(out.dtype))]

    return once_each(once, [tensor.detach().clone().requires_grad_() for tensor in tensors])


def bytes_moved(inputs: list[Tensor], out: int, backward: bool) -> float:
    """What cannot be spared: inputs read and the output written; backward, inputs read again, gradients written too."""
    size = sum(tensor.nbytes for tensor in inputs)
    return float(3 * size + 2 * out if backward else size + out)


def once_each(once: Once, tensors: list[Tensor]) -> Run:
    return (lambda: once(tensors)) if DEVICE.type == "cpu" else Replays(once, tensors)


class Replays:
    """The run on each copy of its inputs in turn, each a graph that has its own results.

    The graphs of one contender share the memory of what they need in between, as successive runs do. ``remark`` says
    where a graph could not hold the run, which then is launched as it is written.
    """

    def __init__(self, once: Once, tensors: list[Tensor]) -> None:
        self.once, self.tensors = once, tensors
        count = copies(tensors, _cache_bytes())
        sets = [tensors, *([_copy(x) for x in tensors] for _ in range(count - 1))]
        try:
            pool = torch.cuda.graph_pool_handle()
            self.turns = itertools.cycle([_captured(once, given, pool) for given in sets])
            self.remark = ""
        except RuntimeError:
            torch.cuda.synchronize()
            self.turns = itertools.cycle([functools.partial(once, given) for given in sets])
            self.remark = "no graph"

    def __call__(self) -> list[Tensor]:
        return next(self.turns)()

    def as_written(self) -> list[Tensor]:
        """The same without a graph, whose replay allocates nothing."""
        return self.once(self.tensors)


def copies(tensors: list[Tensor], cache: int) -> int:
    """How many sets of inputs it takes that their turn comes round only after twice the cache has been read."""
    size = max(1, sum(tensor.nbytes for tensor in tensors))
    return min(MOST_COPIES, 1 + -(-2 * cache // size))


def _cache_bytes() -> int:
    return int(torch.cuda.get_device_properties(DEVICE).L2_cache_size)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _captured(once: Once, tensors: list[Tensor], pool: Any) -> Callable[[], list[Tensor]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            once(tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = once(tensors)

    def replay() -> list[Tensor]:
        graph.replay()
        return out

    return replay

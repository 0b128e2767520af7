"""What each part of a model costs in one forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from hamlet.retrieval.cost import allocations, draw_image, evaluating, flop_counter, repeat, synchronize

_MARK = "hamlet part "


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model in one forward pass on one image; see :class:`hamlet.retrieval.cost.Cost`.

    Args:
        name: of the submodule.
        parameters: how many numbers it learns.
        flops: floating-point operations.
        latency_ms: median time.
        latency_p90_ms: time that nine runs of ten stay below.
        activation_bytes: what it leaves allocated when it returns: its results.
        peak_memory_bytes: largest sum of what it had allocated at a time.
    """

    name: str
    parameters: int
    flops: int
    latency_ms: float
    latency_p90_ms: float
    activation_bytes: int
    peak_memory_bytes: int


def measure_parts(model: nn.Module, image_size: int | tuple[int, int]) -> list[PartCost]:
    """Measure the direct submodules of a model, in their order, on the device that the model is on.

    A list of modules counts as one part. What the model does by itself, between its parts, is in none of them: the
    whole is :func:`hamlet.retrieval.cost.measure_cost`'s to measure.

    Args:
        model: takes float images (1, 3, H, W).
        image_size: height and width, or one number for both.

    Raises:
        ValueError: a size below 1.

    >>> parts = measure_parts(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten()), (5, 6))
    >>> [(part.name, part.parameters, part.flops, part.activation_bytes) for part in parts]
    [('0', 12, 720, 480), ('1', 0, 0, 0)]
    """
    image = draw_image(model, image_size)
    parts = {
        name: list(child) if isinstance(child, nn.ModuleList) else [child] for name, child in model.named_children()
    }
    parts = {name: modules for name, modules in parts.items() if modules}
    with evaluating(model):
        counter = flop_counter()
        with counter, _growth(parts, counter.get_total_flops) as flops:
            model(image)
        times = _times(model, image, parts)
        memory = _memory_on_gpu(model, image, parts) if image.is_cuda else _memory_on_cpu(model, image, parts)
    return [
        PartCost(
            name=name,
            parameters=sum(parameter.numel() for module in modules for parameter in module.parameters()),
            flops=int(flops[name]),
            latency_ms=float(np.median(times[name]) * 1000),
            latency_p90_ms=float(np.quantile(times[name], 0.9) * 1000),
            activation_bytes=memory[name][0],
            peak_memory_bytes=memory[name][1],
        )
        for name, modules in parts.items()
    ]


@contextmanager
def _hooked(
    parts: Mapping[str, Sequence[nn.Module]], before: Callable[[str], Any], after: Callable[[str], Any]
) -> Iterator[None]:
    """Call ``before`` and ``after`` with a part's name around each call of one of its modules."""
    handles = []
    for name, modules in parts.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
            handles.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _growth(parts: Mapping[str, Sequence[nn.Module]], read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """How much ``read`` gives more after each part's calls than before, in all."""
    grown = dict.fromkeys(parts, 0.0)

    def before(name: str) -> None:
        grown[name] -= read()

    def after(name: str) -> None:
        grown[name] += read()

    with _hooked(parts, before, after):
        yield grown


def _times(model: nn.Module, image: Tensor, parts: Mapping[str, Sequence[nn.Module]]) -> dict[str, list[float]]:
    def now() -> float:
        synchronize(image)
        return time.perf_counter()

    def run() -> dict[str, float]:
        with _growth(parts, now) as seconds:
            model(image)
        return seconds

    runs = repeat(run, lambda seconds: sum(seconds.values()))
    return {name: [seconds[name] for seconds in runs] for name in parts}


def _memory_on_gpu(
    model: nn.Module, image: Tensor, parts: Mapping[str, Sequence[nn.Module]]
) -> dict[str, tuple[int, int]]:
    """(left allocated, peak) of each part, by the allocator's own count."""
    found = dict.fromkeys(parts, (0, 0))
    start = 0

    def before(name: str) -> None:
        nonlocal start
        torch.cuda.reset_peak_memory_stats(image.device)
        start = torch.cuda.memory_allocated(image.device)

    def after(name: str) -> None:
        left, peak = found[name]
        grown = torch.cuda.memory_allocated(image.device) - start
        found[name] = left + grown, max(peak, torch.cuda.max_memory_allocated(image.device) - start)

    with _hooked(parts, before, after):
        model(image)
    return found


def _memory_on_cpu(
    model: nn.Module, image: Tensor, parts: Mapping[str, Sequence[nn.Module]]
) -> dict[str, tuple[int, int]]:
    """(left allocated, peak) of each part, from the profiler's record of allocations between the part's marks."""
    marks: dict[str, record_function] = {}

    def before(name: str) -> None:
        marks[name] = record_function(_MARK + name)
        marks[name].__enter__()

    def after(name: str) -> None:
        marks.pop(name).__exit__(None, None, None)

    with _hooked(parts, before, after):
        events = allocations(model, image)
    changes = [event for event in events if event.name() == "[memory]"]
    moments = np.array([event.start_ns() for event in changes])
    held = np.concatenate([[0], np.cumsum([event.nbytes() for event in changes])])
    found = dict.fromkeys(parts, (0, 0))
    for event in events:
        if event.name().startswith(_MARK):
            name = event.name().removeprefix(_MARK)
            first, last = np.searchsorted(moments, [event.start_ns(), event.start_ns() + event.duration_ns()])
            within = held[first : last + 1] - held[first]
            left, peak = found[name]
            found[name] = left + int(within[-1]), max(peak, int(within.max()))
    return found

"""What a model costs: parameters, floating-point operations, latency, memory, and bytes a descriptor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Result = TypeVar("Result")

_WARM_UP = 2
_LEAST_RUNS, _MOST_RUNS, _SECONDS = 5, 50, 2.0


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass on one image.

    Args:
        parameters: how many numbers are learnt.
        flops: floating-point operations, a multiply-add counting as two; matrix products, convolutions, attention and
            this package's operators are counted, element-wise work is not (see ``torch.utils.flop_counter``).
        latency_ms: median time.
        latency_p90_ms: time that nine runs of ten stay below.
        peak_memory_bytes: largest sum of what was allocated during the pass and not yet freed, parameters and input not
            included. On a GPU by the allocator's own count; on the CPU from the profiler's record of every allocation
            of a tensor's memory, in the order in which they came, so inner tensors of an operator count, while
            scratch that a library gets from the system by itself (oneDNN's, OpenMP's) does not.
        descriptor_bytes: size of a float32 descriptor.
    """

    parameters: int
    flops: int
    latency_ms: float
    latency_p90_ms: float
    peak_memory_bytes: int
    descriptor_bytes: int


def measure_cost(model: nn.Module, image_size: int | tuple[int, int]) -> Cost:
    """Measure one image's forward pass in inference mode, on the device that the model is on.

    Args:
        model: takes float images (1, 3, H, W) and returns (1, dim).
        image_size: height and width, or one number for both.

    Raises:
        ValueError: a size below 1.
    """
    image = draw_image(model, image_size)
    with evaluating(model):
        with flop_counter() as counter:
            descriptor: Tensor = model(image)
        times = _time(model, image)
        peak = _peak_memory(model, image)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=counter.get_total_flops(),
        latency_ms=float(np.median(times) * 1000),
        latency_p90_ms=float(np.quantile(times, 0.9) * 1000),
        peak_memory_bytes=peak,
        descriptor_bytes=descriptor.shape[-1] * 4,
    )


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of floating-point operations, which by itself takes the CPU's fused attention for free.

    Example:
        >>> query = torch.ones(1, 2, 3, 8)
        >>> with flop_counter() as counter:
        ...     _ = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        >>> counter.get_total_flops() == 2 * (2 * 2 * 3 * 3 * 8)
        True
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def draw_image(model: nn.Module, image_size: int | tuple[int, int]) -> Tensor:
    """An image of noise (1, 3, H, W), always the same, on the model's device; ValueError for a size below 1."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size: got {height} x {width}, expected at least 1 x 1")
    device = next(model.parameters(), torch.empty(0)).device
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def repeat(run: Callable[[], Result], seconds: Callable[[Result], float]) -> list[Result]:
    """Results of enough runs, after a few to warm up: for two seconds, by what each result says that it took."""
    results: list[Result] = []
    for number in range(_WARM_UP + _MOST_RUNS):
        result = run()
        if number >= _WARM_UP:
            results.append(result)
        if len(results) >= _LEAST_RUNS and sum(map(seconds, results)) > _SECONDS:
            break
    return results


def _time(model: nn.Module, image: Tensor) -> list[float]:
    def run() -> float:
        synchronize(image)
        start = time.perf_counter()
        model(image)
        synchronize(image)
        return time.perf_counter() - start

    return repeat(run, float)


def synchronize(image: Tensor) -> None:
    if image.is_cuda:
        torch.cuda.synchronize(image.device)


def _peak_memory(model: nn.Module, image: Tensor) -> int:
    if image.is_cuda:
        torch.cuda.reset_peak_memory_stats(image.device)
        before = torch.cuda.memory_allocated(image.device)
        model(image)
        return int(torch.cuda.max_memory_allocated(image.device) - before)
    changes = [event.nbytes() for event in allocations(model, image) if event.name() == "[memory]"]
    return int(np.cumsum([0, *changes]).max())


def allocations(model: nn.Module, image: Tensor) -> list[Any]:
    """The profiler's events of a pass on the CPU, by time; those named ``[memory]`` tell what was allocated, freed."""
    with _silent_stderr(), profile(profile_memory=True) as recorded:
        model(image)
    return sorted(recorded.kineto_results.events(), key=lambda event: event.start_ns())


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's C++ library from writing its log to file descriptor 2, which it does unasked."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

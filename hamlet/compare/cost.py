"""What the models of a comparison cost, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from hamlet.retrieval.cost import Cost, draw_image, evaluating, measure_cost, repeat, synchronize


def measure_costs(models: Mapping[str, nn.Module], image_size: int) -> dict[str, Cost]:
    """Cost of one image of ``image_size`` x ``image_size`` pixels for each model; see :func:`measure_cost`.

    The models are timed in turns, pass by pass, so that whatever else the machine does meets all of them alike.

    Args:
        models: by name, all on one device.
        image_size: in pixels.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> from hamlet import create_model
        >>> names = ["gem_mobilenetv3_small", "spoc_mobilenetv3_small"]
        >>> costs = measure_costs({name: create_model(name) for name in names}, 32)
        >>> [costs[name].latency_ms <= costs[name].latency_p90_ms for name in names]
        [True, True]
    """
    alone = {name: measure_cost(model, image_size) for name, model in models.items()}
    with ExitStack() as held:
        for model in models.values():
            held.enter_context(evaluating(model))
        images = [draw_image(model, image_size) for model in models.values()]
        turns = repeat(
            lambda: [_seconds(model, image) for model, image in zip(models.values(), images, strict=True)],
            lambda turn: sum(turn) / len(turn),
        )
    return {
        name: replace(
            cost, latency_ms=float(np.median(times)) * 1000, latency_p90_ms=float(np.quantile(times, 0.9)) * 1000
        )
        for (name, cost), times in zip(alone.items(), np.array(turns).T, strict=True)
    }


def _seconds(model: nn.Module, image: Tensor) -> float:
    # The pass of another model came before: this one has to find its weights in the cache again.
    model(image)
    synchronize(image)
    begun = time.perf_counter()
    model(image)
    synchronize(image)
    return time.perf_counter() - begun

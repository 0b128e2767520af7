"""training.png: the losses, what was trained on when, and where the time went."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hamlet.files import replacing
from hamlet.training.log import read_records
from hamlet.training.timing import PARTS

COLUMNS = 200
"""Steps are averaged to at most so many columns."""


def plot_run(out: Path) -> None:
    """Draw training.png from a run's history.jsonl and timing.jsonl; nothing is drawn before the first step."""
    from matplotlib.figure import Figure

    history, timing = (read_records(out / name) for name in ("history.jsonl", "timing.jsonl"))
    if not history:
        return
    steps = [record["step"] for record in history]
    figure = Figure(figsize=(10, 11), layout="constrained")
    losses, pace, drawn, seconds = figure.subplots(4, 1, height_ratios=(3, 2, 3, 3))
    # Each stage has the losses that it weighs.
    for name in dict.fromkeys(name for record in history for name in record if name.startswith("loss")):
        losses.plot(*_columns(steps, [record.get(name, np.nan) for record in history]), label=name)
    losses.set(ylabel="loss", yscale="symlog")
    losses.legend(fontsize=7, ncols=4)
    if found := [(record["step"], record["validation/map"]) for record in history if "validation/map" in record]:
        beside = losses.twinx()
        beside.plot(*zip(*found, strict=True), "ko-", markersize=3)
        beside.set_ylabel("validation mAP")
    largest = max(record["image_size"] for record in history)
    pace.plot(steps, [record["pool"] for record in history], label="share of samples in use")
    pace.plot(steps, [record["image_size"] / largest for record in history], label=f"image size / {largest:.0f}")
    for previous, record in pairwise(history):
        if record["stage"] != previous["stage"]:
            pace.axvline(record["step"], color="grey", linestyle="--")
    pace.set(ylim=(0, 1.05))
    pace.legend(fontsize=7, title="stages end at the dashed lines", title_fontsize=7)
    _draw_tenths(drawn, history)
    if timing:
        parts = [_columns([line["step"] for line in timing], [line[part] for line in timing]) for part in PARTS]
        seconds.stackplot(parts[0][0], *(values for _, values in parts), labels=PARTS)
        seconds.legend(fontsize=7, ncols=len(PARTS))
    seconds.set(ylabel="seconds a step", xlabel="step")
    for axes in (losses, pace, drawn, seconds):
        axes.set_xlim(1, max(2, steps[-1]))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    with replacing(out / "training.png") as file:
        file.write(picture.getvalue())


def _draw_tenths(axes: Any, history: list[dict[str, float]]) -> None:
    """How much of the batches came from each tenth of the samples' ranking by difficulty."""
    axes.set(ylabel="tenth by difficulty\n(1: the easiest)")
    if "drawn/1" not in history[0]:
        axes.text(0.5, 0.5, "no curriculum: all samples from the start", ha="center", transform=axes.transAxes)
        return
    counts = np.array([[record[f"drawn/{tenth}"] for record in history] for tenth in range(1, 11)])
    columns = np.array_split(np.arange(len(history)), min(COLUMNS, len(history)))
    shares = np.stack([counts[:, column].sum(1) for column in columns], axis=1)
    shares = shares / np.maximum(1, shares.sum(0))
    image = axes.imshow(
        shares, aspect="auto", origin="lower", extent=(1, max(2, len(history)), 0.5, 10.5), vmin=0, interpolation="none"
    )
    axes.figure.colorbar(image, ax=axes, label="share of the batch")


def _columns(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    count = min(COLUMNS, len(steps))
    places = np.array_split(np.array(steps, float), count)
    return [column.mean() for column in places], [column.mean() for column in np.array_split(values, count)]

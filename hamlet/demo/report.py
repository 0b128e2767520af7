"""The demo's report.html: the measured table, ranked queries with the maps of the model, and the training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from hamlet.compare.report import comparison_columns, comparison_rows
from hamlet.demo.data import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from hamlet.demo.evaluation import View
from hamlet.demo.teacher import TEACHER_NAME
from hamlet.retrieval.metrics import labelled_per_query
from hamlet.retrieval.report import (
    Figure,
    Picture,
    Ranked,
    RankedSection,
    Section,
    Table,
    Text,
    draw_maps,
    write_report,
)

QUERIES_SHOWN = 12
RESULTS_SHOWN = 10
SHOWN_SIDE = 160


def table(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table's columns and rows, one a model, as text."""
    rows = {
        name: {"runs": [{"metrics": {"all": model["metrics"]}}], "cost": model["cost"]}
        for name, model in results["models"].items()
    }
    return comparison_columns({"models": rows}), comparison_rows({"models": rows})


def write_demo_report(
    path: Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    rankings: Mapping[str, NDArray[np.int64]],
    queries: Sequence[View],
    database: Sequence[View],
    model: nn.Module,
) -> Path:
    """Write the self-contained report and return its path.

    Args:
        path: of the HTML file.
        results: what results.json holds.
        histories: a model's name -> one dict of losses a step.
        rankings: a model's name -> int (database, queries), the database's places, best first; HAMLET comes first.
        queries: the views asked with.
        database: the views searched.
        model: the HAMLET, whose maps are drawn.
    """
    shown = range(0, len(queries), max(1, len(queries) // QUERIES_SHOWN))
    sections: list[Section] = [
        Table("Retrieval of things never seen", *table(results), _table_caption(results)),
        Text("What was measured", _what(results)),
    ]
    for name, ranks in rankings.items():
        drawn = model if name == next(iter(rankings)) else None
        precisions = labelled_per_query(ranks, [view.label for view in database], [view.label for view in queries])[
            "map"
        ]
        rows = [
            _row(queries[q], [database[place] for place in ranks[:RESULTS_SHOWN, q]], float(precisions[q]), drawn)
            for q in shown
        ]
        sections.append(RankedSection(f"Queries answered by {name}", rows, _CAPTION if drawn is not None else ""))
    sections += [Figure("Training", _curves(histories), "Each loss as training saw it, smoothed over ten steps.")]
    return write_report(path, "HAMLET demo", sections, lead=_lead(results))


_CAPTION = (
    "Queries are taken at even distances from the list, not chosen. Below each picture: the half-width of the "
    "attention window that the finest level chose, averaged over heads and key levels; and the weights of the "
    "attention pooling. Colours run from the smallest to the largest value of each map."
)


def _lead(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    return (
        f"A small HAMLET and the same backbone with GeM pooling, both trained from random weights for "
        f"{settings['steps']} steps on the same views (seed {settings['seed']}), on {results['machine']}."
    )


def _table_caption(results: Mapping[str, Any]) -> str:
    test = results["test"]
    return (
        f"mAP and precision in percent over {test['queries']} queries against {test['database']} views of "
        f"{test['instances']} instances. FLOPs, latency and peak memory are of one image of "
        f"{results['settings']['image_size']} x {results['settings']['image_size']} pixels on the CPU."
    )


def _what(results: Mapping[str, Any]) -> str:
    train, test = results["train"], results["test"]
    return (
        "The pictures are photographs that scikit-image carries inside its package. An instance is one square of a "
        "grid laid over a photograph; its views are random perspectives, crops, colours, blurs and occlusions of that "
        "square alone. A result is correct when it is a view of the query's instance: other squares of the same "
        "photograph are wrong.\n\n"
        f"Trained on {train['instances']} instances of: {', '.join(TRAIN_PHOTOGRAPHS)}. Tested on {test['instances']} "
        f"instances of other photographs: {', '.join(TEST_PHOTOGRAPHS)}; {test['distractors']} of them are never asked "
        "for and only distract.\n\n"
        f"HAMLET's teacher: {TEACHER_NAME}. Its prototypes are the mean vectors of the training photographs, its "
        "captions lie midway between those and the crops' own. The baseline has its classification loss alone."
    )


def _row(query: View, results: Sequence[View], average_precision: float, model: nn.Module | None) -> Ranked:
    pictures = [
        Picture(
            _enlarge(result.image),
            result.name,
            correct=result.label == query.label,
            overlays=_maps(model, result.image),
        )
        for result in results
    ]
    asked = Picture(_enlarge(query.image), query.name, overlays=_maps(model, query.image))
    return Ranked(asked, pictures, f"average precision {100 * average_precision:.0f}%")


def _enlarge(image: Tensor) -> Image.Image:
    return transforms.to_pil_image(image).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)


def _maps(model: nn.Module | None, image: Tensor) -> dict[str, Image.Image]:
    """The radius and pooling maps of one picture, drawn over it; nothing without a model."""
    if model is None:
        return {}
    drawn = draw_maps(model, image, _enlarge(image))
    return {name: drawn[name] for name in ("radius", "pooling") if name in drawn}


def _curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    from matplotlib.figure import Figure as Drawing

    names = [name for name in next(iter(histories.values()))[0] if name == "loss" or name.startswith("loss/")]
    drawing = Drawing(figsize=(9, 2.6 * ((len(names) + 2) // 3)), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = drawing.add_subplot((len(names) + 2) // 3, 3, place)
        for model, history in histories.items():
            values = torch.tensor([step[name] for step in history if name in step])
            if len(values):
                width = min(10, len(values))
                axes.plot(range(width, len(values) + 1), values.unfold(0, width, 1).mean(1), label=model)
        axes.set_title(name)
        axes.set_xlabel("step")
    drawing.axes[0].legend()
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()

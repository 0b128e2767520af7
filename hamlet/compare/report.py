"""A comparison's table, its picture of accuracy against cost, and its self-contained page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hamlet.compare.plan import CONTROLS
from hamlet.files import replacing
from hamlet.retrieval.report import Figure, Table, Text, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COSTS = {
    "parameters": ("parameters (M)", 1e6, 2),
    "flops": ("GFLOPs", 1e9, 3),
    "latency_ms": ("latency (ms)", 1, 1),
    "latency_p90_ms": ("p90 (ms)", 1, 1),
    "peak_memory_bytes": ("memory (MiB)", 2**20, 1),
}
"""A cost's name -> its column, its unit, and how many digits are shown."""

AXES = ("flops", "latency_ms", "parameters")
MARKERS = "os^Dv*"


def comparison_columns(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The table's columns: the model, each measure (with its setup where there are several), and the costs."""
    metrics = _first_metrics(results)
    names = [_column(setup, measure, len(metrics)) for setup, measures in metrics.items() for measure in measures]
    return ("model", *names, *(column for column, _, _ in COSTS.values()))


def comparison_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows, one a model, as text: means over the seeds, and the sample deviation if there are several."""
    rows = []
    for name, row in results["models"].items():
        runs = row["runs"]
        metrics = [
            spread([100 * run["metrics"][setup][measure] for run in runs], 1)
            for setup, measures in runs[0]["metrics"].items()
            for measure in measures
        ]
        costs = [f"{row['cost'][cost] / unit:.{digits}f}" for cost, (_, unit, digits) in COSTS.items()]
        rows.append((name, *metrics, *costs))
    return rows


def spread(values: Sequence[float], digits: int) -> str:
    """A mean and the sample standard deviation, or the mean alone where all values are one.

    >>> spread([1.0, 3.0], 1), spread([2.0], 1), spread([2.0, 2.0], 0)
    ('2.0 ± 1.4', '2.0', '2')
    """
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


def write_comparison(out: Path, results: Mapping[str, Any]) -> None:
    """Write comparison.png and comparison.html, which holds the table and the picture, to a folder."""
    buffer = io.BytesIO()
    draw_comparison(results).savefig(buffer, format="png", dpi=110)
    with replacing(out / "comparison.png") as file:
        file.write(buffer.getvalue())
    seeds = len(results["seeds"])
    size = results["image_size"]
    caption = (
        f"Accuracy in percent{f', mean and sample deviation over {seeds} seeds' if seeds > 1 else ''}. FLOPs, latency "
        f"(median and 90th percentile) and peak memory are of one image of {size} x {size} pixels on the CPU, wherever "
        f"the models were trained, all timed in turns by one process ({results['machine']})."
    )
    missing = "\n\n".join(f"{name}: {reason}." for name, reason in results["unavailable"].items())
    columns = comparison_columns(results)
    write_report(
        out / "comparison.html",
        "Comparison",
        [
            Table("All methods", columns, comparison_rows(results), caption),
            Figure(
                "Accuracy against cost",
                buffer.getvalue(),
                "Each point is a method, by its colour, on a backbone, by its marker; hollow ones are controls, in "
                "the colour of the method that they are of; bars are deviations over seeds.",
            ),
            Text("How", _HOW),
            Text("Not available", missing),
        ],
        lead=f"{results['description']} {results['steps']} steps each. {results['version']}.",
    )


_HOW = (
    "All models were trained by one loop on the same data for the same steps from the same seeds. HAMLET has the "
    "losses of the recipe, all others its classification loss alone; SpCa has its own classifier, scale and margin, "
    "ArcFace with 32 and 0.15 radians.\n\n"
    "Three rows are controls. gem_centred is GeM that ends in a batch normalisation, as HAMLET's and Token's "
    "descriptors do and the others' do not: in few steps that alone is an advantage. hamlet_classification is HAMLET "
    "with the classification loss alone: what it leads by is not the other losses'. spca_recipe_loss is SpCa with the "
    "classification loss that all others have.\n\n"
    "Three designs were tried for HAMLET on held-out training photographs of the demo, one seed each, and the best was "
    "kept; for GeM nothing but the learning rate was, and for the other methods nothing at all: they have their "
    "defaults. One choice saw the photographs of the test: that HFFN's residual branches begin small was kept after an "
    "ablation on them, three seeds, by a difference within their deviation (30.1 against 29.7). The demo's "
    "learning rate and the weights of its losses were chosen with HAMLET and GeM alone, and HAMLET's width on "
    "MobileNetV3 by hand.\n\n"
    "Below about 96 pixels the last map has few pixels (2 x 2 of 48 x 48), where the regions of R-MAC, the dilations "
    "of DOLG and the surroundings of SpCa have nothing to tell apart: judge those by a run with image_size=96 or more. "
    "mace_like is no reproduction of MACE, of which no definition is public."
)


def draw_comparison(results: Mapping[str, Any]) -> Drawing:
    """Accuracy against FLOPs, latency and parameters: a panel each, a point for each model, a legend beside them.

    A colour is a method, which a control shares with the method that it is of; a marker is a backbone.
    """
    from matplotlib.figure import Figure as Drawing

    setup, measure = main_measure(results)
    rows = results["models"].values()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    families = list(dict.fromkeys(CONTROLS.get(method, method) for method in methods))
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    styles = {method: _style(method, families) for method in methods}
    markers = {backbone: MARKERS[number % len(MARKERS)] for number, backbone in enumerate(backbones)}
    drawing = Drawing(figsize=(13, 4.6), layout="constrained")
    axes = drawing.subplots(1, len(AXES), sharey=True)
    for panel, cost in zip(axes, AXES, strict=True):
        column, unit, _ = COSTS[cost]
        for row in rows:
            accuracy = [100 * run["metrics"][setup][measure] for run in row["runs"]]
            panel.errorbar(
                row["cost"][cost] / unit,
                fmean(accuracy),
                yerr=stdev(accuracy) if len(accuracy) > 1 else None,
                elinewidth=1,
                marker=markers[row["backbone"]],
                **styles[row["method"]],
            )
        panel.set_xlabel(column)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(f"{_column(setup, measure, len(results['main_setups']))} (%)")
    drawing.legend(handles=_legend(styles, markers), loc="outside right upper", fontsize="small")
    return drawing


def _style(method: str, families: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    # tab20 pairs a strong colour with a pale one: the strong ones first.
    pale, strong = divmod(families.index(CONTROLS.get(method, method)), 10)
    return {
        "color": colormaps["tab20"](2 * strong + pale % 2),
        "fillstyle": "none" if method in CONTROLS else "full",
        "markersize": 11 if method == "hamlet" else 7,
        "markeredgecolor": "black" if method == "hamlet" else None,
        "linestyle": "none",
    }


def _legend(styles: Mapping[str, Mapping[str, Any]], markers: Mapping[str, str]) -> list[Any]:
    """An entry for each method, then one for each backbone, rather than one for each pair of them."""
    from matplotlib.lines import Line2D

    first = next(iter(markers.values()))
    methods = [Line2D([], [], marker=first, label=method, **style) for method, style in styles.items()]
    return methods + [
        Line2D([], [], marker=marker, label=backbone, color="black", linestyle="none")
        for backbone, marker in markers.items()
    ]


def main_measure(results: Mapping[str, Any]) -> tuple[str, str]:
    """The setup and the measure by which methods are told apart."""
    metrics = _first_metrics(results)
    for setup in results["main_setups"]:
        if setup in metrics and math.isfinite(next(iter(metrics[setup].values()))):
            return setup, next(iter(metrics[setup]))
    setup = next(iter(metrics))
    return setup, next(iter(metrics[setup]))


def _first_metrics(results: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics: Mapping[str, Any] = next(iter(results["models"].values()))["runs"][0]["metrics"]
    return metrics


def _column(setup: str, measure: str, setups: int) -> str:
    shown = {"map": "mAP"}.get(measure, measure.replace("p@", "P@"))
    return shown if setups == 1 else f"{setup} {shown}"

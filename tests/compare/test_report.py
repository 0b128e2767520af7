"""The table and the picture of a comparison, of made-up numbers of which no two are alike."""

from __future__ import annotations

import base64
import html
import json
import re
from itertools import count
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from matplotlib.colors import same_color

from hamlet.compare.plan import CONTROLS
from hamlet.compare.report import comparison_columns, comparison_rows, draw_comparison, write_comparison
from hamlet.models.registry import FAMILIES

BACKBONES = ("resnet18", "mobilenetv3_large")
METHODS = (*FAMILIES, *CONTROLS)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    models = {}
    number = count(1)
    for backbone in BACKBONES:
        for method in METHODS:
            n = next(number)
            measured = [{"map": 0.3 + n / 100, "p@1": 0.5}, {"map": 0.31 + n / 90, "p@1": 0.6}]
            models[f"{method}_{backbone}"] = {
                "method": method,
                "backbone": backbone,
                "runs": [{"seed": seed, "metrics": {"all": metrics}} for seed, metrics in enumerate(measured)],
                "cost": {
                    "parameters": 1_000_000 * n + 234_567,
                    "flops": 20_000_000 * n + 1_234_567,
                    "latency_ms": 3.21 * n,
                    "latency_p90_ms": 4.56 * n,
                    "peak_memory_bytes": 2**20 * n + 2**18,
                    "descriptor_bytes": 2048,
                },
            }
    return {
        "description": "Made up.",
        "version": "hamlet 1.2.3, commit 0123456789ab",
        "machine": "a machine, 1 threads",
        "image_size": 48,
        "steps": 250,
        "seeds": [0, 1],
        "main_setups": ["all"],
        "models": models,
        "unavailable": {"dscf": "no definition"},
    }


def test_each_column_is_its_cost_in_its_unit(results: dict[str, Any]) -> None:
    columns = comparison_columns(results)
    assert columns == (
        *("model", "mAP", "P@1", "parameters (M)", "GFLOPs", "latency (ms)", "p90 (ms)", "memory (MiB)"),
    )
    rows = comparison_rows(results)
    assert [row[0] for row in rows] == [f"{method}_{backbone}" for backbone in BACKBONES for method in METHODS]
    # The third model, by hand: 33 and 34.3 percent, 3234567 parameters, 61234567 operations, 3.25 MiB.
    assert rows[2] == ("spoc_resnet18", "33.7 ± 0.9", "55.0 ± 7.1", "3.23", "0.061", "9.6", "13.7", "3.2")


def test_each_point_is_its_models_accuracy_against_its_cost(results: dict[str, Any]) -> None:
    drawing = draw_comparison(results)
    panels = drawing.axes
    assert [panel.get_xlabel() for panel in panels] == ["GFLOPs", "latency (ms)", "parameters (M)"]
    assert panels[0].get_ylabel() == "mAP (%)"
    looks: dict[tuple[str, str], tuple[Any, ...]] = {}
    for panel, (cost, unit) in zip(panels, [("flops", 1e9), ("latency_ms", 1), ("parameters", 1e6)], strict=True):
        for point, row in zip(panel.containers, results["models"].values(), strict=True):
            accuracy = [100 * run["metrics"]["all"]["map"] for run in row["runs"]]
            marker, _, (bar,) = point.lines
            assert marker.get_xydata().tolist() == [[row["cost"][cost] / unit, pytest.approx(mean(accuracy))]]
            (low, high) = bar.get_segments()[0][:, 1]
            assert (high - low) / 2 == pytest.approx(stdev(accuracy))
            looks[row["method"], row["backbone"]] = marker.get_color(), marker.get_marker(), marker.get_fillstyle()
    for (method, backbone), (color, shape, filled) in looks.items():
        assert shape == "os"[BACKBONES.index(backbone)]
        assert filled == ("none" if method in CONTROLS else "full")
        for other in METHODS:
            alike = CONTROLS.get(other, other) == CONTROLS.get(method, method)
            assert same_color(looks[other, backbone][0], color) == alike


def test_the_legend_names_every_method_and_backbone_and_fits(results: dict[str, Any]) -> None:
    drawing = draw_comparison(results)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == [*METHODS, *BACKBONES]
    inside, whole = legend.get_window_extent(), drawing.bbox
    assert whole.x0 <= inside.x0
    assert inside.x1 <= whole.x1
    assert whole.y0 <= inside.y0
    assert inside.y1 <= whole.y1
    assert all(panel.get_window_extent().x1 < inside.x0 for panel in drawing.axes)


def test_the_page_holds_the_table_the_picture_and_what_made_them(results: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path, results)
    page = (tmp_path / "comparison.html").read_text()
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page)]
    assert cells == [cell for row in (comparison_columns(results), *comparison_rows(results)) for cell in row]
    picture = base64.b64encode((tmp_path / "comparison.png").read_bytes()).decode()
    assert f"data:image/png;base64,{picture}" in page
    said = html.unescape(page)
    for words in ("hamlet 1.2.3, commit 0123456789ab", "a machine, 1 threads", "48 x 48 pixels", "dscf: no definition"):
        assert words in said


def test_the_documentation_has_the_table_of_the_committed_run() -> None:
    docs = Path(__file__).parents[2] / "docs"
    results = json.loads((docs / "comparison.json").read_text())
    assert [(row["method"], row["backbone"]) for row in results["models"].values()] == [
        (method, backbone) for backbone in BACKBONES for method in METHODS
    ]
    assert all([run["seed"] for run in row["runs"]] == [0, 1, 2] for row in results["models"].values())
    table = "\n".join(
        f"| {' | '.join(row)} |" for row in [comparison_columns(results), ("---",) * 10, *comparison_rows(results)]
    )
    assert table in (docs / "methods.md").read_text()

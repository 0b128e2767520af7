"""`hamlet profile`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import Json
from hamlet.cli.output import print_json, print_table

MEASURES = ("parameters", "GFLOPs", "latency ms", "p90 ms", "activations MiB", "peak MiB")
WHOLE = "whole"


@app.command(epilog="Example: [bold]hamlet profile hamlet_resnet18 hamlet_mobilenetv3_large --size 1024[/bold]")
def profile(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Checkpoints, or models' names.")],
    size: Annotated[int, typer.Option(min=32, help="Height and width of the image, in pixels.")] = 1024,
    json_only: Json = False,
) -> None:
    """Measure what models cost on one image, as a whole and by parts of the architecture; of several, side by side."""
    from dataclasses import asdict

    from hamlet.retrieval.cost import measure_cost
    from hamlet.retrieval.parts import measure_parts
    from hamlet.retrieval.search import open_model

    found: list[dict[str, Any]] = []
    for name in models:
        model, _ = open_model(name)
        parts = [asdict(part) for part in measure_parts(model, size)]
        found.append({"model": name, "size": size, "cost": asdict(measure_cost(model, size)), "parts": parts})
    if json_only:
        print_json(found)
        return
    if len(found) == 1:
        show_parts(found[0])
    else:
        show_side_by_side(found)


def show_parts(model: dict[str, Any]) -> None:
    """A row for each part, a column for each measure."""
    rows = [(part, *cells) for part, cells in cells_by_part(model).items()]
    print_table(f"{model['model']} at {model['size']} x {model['size']}", ("", *MEASURES), rows)
    typer.echo(f"descriptor: {model['cost']['descriptor_bytes']} bytes\n")


def show_side_by_side(models: list[dict[str, Any]]) -> None:
    """A row for each measure of each part that any model has, a column for each model."""
    tables = [cells_by_part(model) for model in models]
    parts = [*dict.fromkeys(part["name"] for model in models for part in model["parts"]), WHOLE]
    absent = ("",) * len(MEASURES)
    rows = []
    for part in parts:
        by_measure = zip(*(table.get(part, absent) for table in tables), strict=True)
        shown = [(measure, *cells) for measure, cells in zip(MEASURES, by_measure, strict=True) if any(cells)]
        rows += [(part if number == 0 else "", *row) for number, row in enumerate(shown)]
    rows.append(("", "descriptor bytes", *(str(model["cost"]["descriptor_bytes"]) for model in models)))
    size = models[0]["size"]
    print_table(f"at {size} x {size}", ("", "", *(model["model"] for model in models)), rows)


def cells_by_part(model: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {part["name"]: cost_cells(part) for part in model["parts"]} | {WHOLE: cost_cells(model["cost"])}


def cost_cells(cost: dict[str, Any]) -> tuple[str, ...]:
    activations = cost.get("activation_bytes")
    return (
        f"{cost['parameters']:,}",
        f"{cost['flops'] / 1e9:.4g}",
        f"{cost['latency_ms']:.4g}",
        f"{cost['latency_p90_ms']:.4g}",
        "" if activations is None else f"{activations / 2**20:.4g}",
        f"{cost['peak_memory_bytes'] / 2**20:.4g}",
    )

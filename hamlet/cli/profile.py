"""`hamlet profile`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import Json
from hamlet.cli.output import print_json, print_table


@app.command(epilog="Example: [bold]hamlet profile hamlet_resnet18 hamlet_mobilenetv3_large --size 1024[/bold]")
def profile(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoints, or models' names.")],
    size: Annotated[int, typer.Option(min=32, help="Height and width of the image, in pixels.")] = 1024,
    json_only: Json = False,
) -> None:
    """Measure what models cost on one image, as a whole and by parts of the architecture."""
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
    columns = ("parameters", "GFLOPs", "latency ms", "p90 ms", "activations MiB", "peak MiB")
    for each in found:
        rows = [(part["name"], *cost_cells(part)) for part in each["parts"]]
        print_table(
            f"{each['model']} at {size} x {size}", ("", *columns), [*rows, ("whole", *cost_cells(each["cost"]))]
        )
        typer.echo(f"descriptor: {each['cost']['descriptor_bytes']} bytes\n")


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

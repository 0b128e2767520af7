"""`hamlet info`."""

from __future__ import annotations

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import Json
from hamlet.cli.output import print_json, print_table


@app.command(epilog="Example: [bold]hamlet info --json[/bold]")
def info(json_only: Json = False) -> None:
    """Show versions, devices, instruction sets, and which backends can serve each operator here."""
    from hamlet.environment import describe

    found = describe()
    if json_only:
        print_json(found)
        return
    for title in ("versions", "devices", "instruction_sets"):
        print_table(title.replace("_", " "), ("", ""), list(found[title].items()))
    rows = [
        (operator, device, backend, "; ".join(reasons) or "can serve")
        for operator, devices in found["operators"].items()
        for device, backends in devices.items()
        for backend, reasons in backends.items()
    ]
    print_table("operators", ("operator", "device", "backend", ""), rows)
    typer.echo(f"models: {', '.join(found['models'])}")
    for method, reason in found["unavailable"].items():
        typer.echo(f"{method}: not available: {reason}")
    typer.echo(f"recipes: {', '.join(found['recipes'])}")

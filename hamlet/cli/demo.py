"""`hamlet demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.output import print_table


@app.command(epilog="Example: [bold]hamlet demo --steps 100 --out quick-demo[/bold]")
def demo(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each model; default: the recipe's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of report.html, results.json and the models.")] = Path(
        "hamlet-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the views and their order.")] = 0,
    photographs: Annotated[
        Path | None,
        typer.Option(help="Train nothing: write the pictures and the teacher to this folder, for hamlet ablate."),
    ] = None,
) -> None:
    """Train a small HAMLET and a GeM baseline on scikit-image's photographs, and compare what they retrieve.

    Takes a few minutes on two CPU cores and downloads nothing. A run that was stopped goes on from its last checkpoint
    when the same command is given again.
    """
    from hamlet.demo import run_demo
    from hamlet.demo.report import table

    if photographs is not None:
        from hamlet.demo.folder import write_photographs

        for key, path in write_photographs(photographs, seed=seed).items():
            typer.echo(f"{key}={path}")
        return
    results = run_demo(out, steps=steps, seed=seed)
    print_table("Retrieval of things never seen", *table(results))
    typer.echo(f"report: {out / 'report.html'}")

"""`hamlet ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app


@app.command(
    epilog="Example: [bold]hamlet ablate folder data.root=PHOTOS data.validation=OTHERS data.teacher=CACHE "
    "--out runs/ablation[/bold]"
)
def ablate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see [bold]hamlet info[/bold]) or a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and the tables.")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 3,
    without: Annotated[
        list[str] | None, typer.Option(help="A part to train without, such as 'ACSA'; repeated; default: each.")
    ] = None,
) -> None:
    """Train a recipe with and without each part of HAMLET. Runs that were stopped go on, those done are kept."""
    from hamlet.training import Terminated, load_recipe
    from hamlet.training.ablation import VARIANTS
    from hamlet.training.ablation import ablate as run
    from hamlet.training.ablation_report import table

    variants = tuple(VARIANTS) if not without else ("HAMLET", *(f"no {part}" for part in without))
    try:
        rows = run(load_recipe(recipe, settings or ()), out, seeds=range(seeds), variants=variants)
    except Terminated as terminated:
        typer.echo(f"hamlet: {terminated}; the same command again goes on from here", err=True)
        raise
    typer.echo(table(rows), nl=False)

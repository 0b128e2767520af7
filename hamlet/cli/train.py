"""`hamlet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.output import warn_in_one_line


@app.command(
    epilog="Examples: [bold]hamlet train folder data.root=PHOTOS[/bold]  |  "
    "[bold]hamlet train mine.yaml optimizer.lr=0.001 --out runs/mine[/bold]"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see [bold]hamlet info[/bold]) or a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoints; default: runs/RECIPE.")] = None,
) -> None:
    """Train a model by a recipe. A run that was stopped goes on when the same command is given again."""
    from hamlet.training import load_recipe, train_recipe

    chosen = load_recipe(recipe, settings or ())
    folder = out or Path("runs") / Path(recipe).stem
    _, dataset = train_recipe(chosen, folder)
    for name, reason in dataset.skipped:
        warn_in_one_line(f"{name}: {reason}; left out")
    typer.echo(f"{folder / 'model.pt'}: {chosen.model.name} after {chosen.steps} steps")

"""`hamlet train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.output import print_table, warn_in_one_line

if TYPE_CHECKING:
    from hamlet.training.dry_run import DryRun


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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take a few steps of each stage and tell data, memory and time."),
    ] = False,
) -> None:
    """Train a model by a recipe. A run that was stopped goes on when the same command is given again.

    Several processes are started by torchrun: torchrun --nproc-per-node 2 --no-python hamlet train ...
    """
    from hamlet.training import Terminated, load_recipe, train_recipe
    from hamlet.training.run import try_recipe

    chosen = load_recipe(recipe, settings or ())
    folder = out or Path("runs") / Path(recipe).stem
    # torchrun and accelerate number their processes so; one of them speaks for all.
    speaks = os.environ.get("RANK", "0") == "0"
    if dry_run:
        found, dataset = try_recipe(chosen, folder, progress=speaks)
        if speaks:
            tell(found, dataset.skipped)
        return
    try:
        _, dataset = train_recipe(chosen, folder, progress=speaks)
    except Terminated as terminated:
        if speaks:
            typer.echo(f"hamlet: {terminated}; the same command again goes on from here", err=True)
        raise
    if not speaks:
        return
    for name, reason in dataset.skipped:
        warn_in_one_line(f"{name}: {reason}; left out")
    typer.echo(f"{folder / 'model.pt'}: {chosen.model.name} after {chosen.steps} steps")


def tell(found: DryRun, skipped: Sequence[tuple[str, str]]) -> None:
    """Print what a dry run found."""
    for name, reason in skipped:
        warn_in_one_line(f"{name}: {reason}; left out")
    rows = [
        ("pictures", f"{found.samples}, {len(skipped)} left out"),
        ("classes", str(found.classes)),
        ("parameters", f"{found.parameters / 1e6:.2f} M"),
        ("memory", f"{found.memory / 2**30:.2f} GiB"),
        ("checkpoint", f"{found.checkpoint / 2**20:.0f} MiB, {found.free / 2**30:.0f} GiB free"),
        ("time", f"{found.total_seconds / 3600:.2f} h"),
    ]
    print_table("the run", ("", ""), rows)
    parts = tuple(found.seconds[0])
    print_table(
        "a step, seconds",
        ("stage", "steps", *parts, "all"),
        [
            (str(stage), str(steps), *(f"{each[part]:.3f}" for part in parts), f"{whole:.3f}")
            for stage, (steps, each, whole) in enumerate(
                zip(found.steps, found.seconds, found.step_seconds, strict=True)
            )
        ],
    )

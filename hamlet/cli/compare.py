"""`hamlet compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import Json
from hamlet.cli.output import print_json, print_table


@app.command(
    epilog="Examples: [bold]hamlet compare demo --models hamlet,gem,spca --backbones resnet18,mobilenetv3_large "
    "--seeds 3[/bold]  |  [bold]hamlet compare folder data.root=PHOTOS --dataset roxford5k --data datasets[/bold]"
)
def compare(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name or a YAML file; [bold]demo[/bold] brings its own pictures and test.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    models: Annotated[
        str,
        typer.Option(
            metavar="METHODS",
            help="Methods and controls, comma-separated; default: all. Not available: dscf (no definition of DSCF is "
            "public, so there is nothing to build).",
        ),
    ] = "",
    backbones: Annotated[str, typer.Option(help="Backbones, comma-separated, by their names here or in timm.")] = (
        "resnet18"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each model, from the recipe's on.")] = 1,
    dataset: Annotated[str, typer.Option(help="The benchmark to test on, as in [bold]hamlet evaluate[/bold].")] = "",
    data: Annotated[Path | None, typer.Option(help="The benchmark's folder or CSV file.")] = None,
    longest_side: Annotated[
        int | None, typer.Option(min=32, help="Longest side in pixels to which its images are shrunk; default: 1024.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of all results; default: runs/compare-RECIPE-DATASET.")
    ] = None,
    json_only: Json = False,
) -> None:
    """Train and evaluate methods alike, and tell their accuracy and cost in one table, page and picture.

    Each finished model and seed is kept: a run that was stopped goes on when the same command is given again. Several
    processes are started by torchrun: torchrun --nproc-per-node 2 --no-python hamlet compare ...
    """
    from hamlet import processes
    from hamlet.compare import BenchmarkTask, Task, comparison_runs
    from hamlet.compare import compare as run
    from hamlet.compare.plan import CONTROLS
    from hamlet.compare.report import comparison_columns, comparison_rows
    from hamlet.models import UNAVAILABLE
    from hamlet.models.registry import FAMILIES

    chosen = _split(models) or [*FAMILIES, *CONTROLS]
    runs = comparison_runs(recipe, settings or (), methods=chosen, backbones=_split(backbones), seeds=seeds)
    base = runs[0].recipe
    task: Task
    if recipe == "demo":
        if dataset or data is not None or longest_side is not None:
            raise ValueError(
                "dataset: the recipe demo brings its own test, of image_size=; give another recipe, or none of "
                "--dataset, --data and --longest-side"
            )
        from hamlet.demo.task import DemoTask

        task = DemoTask(base)
    elif not dataset or data is None:
        raise ValueError("dataset: missing, expected --dataset and --data for what the models are tested on")
    else:
        side = {} if longest_side is None else {"longest_side": longest_side}
        task = BenchmarkTask(base, dataset, data, progress=processes.rank() == 0, **side)
    named = f"compare-{Path(recipe).stem}-{dataset}" if dataset else f"compare-{Path(recipe).stem}"
    folder = out or Path("runs") / named
    results = run(task, runs, folder)
    if json_only:
        print_json(results)
        return
    print_table("percent, and cost of one image", comparison_columns(results), comparison_rows(results))
    for name, reason in UNAVAILABLE.items():
        typer.echo(f"{name}: not available: {reason}")
    typer.echo(f"report: {folder / 'comparison.html'}, picture: {folder / 'comparison.png'}")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]

"""`hamlet whiten`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import ModelArgument, MultiScale, Scales, Side, chosen_scales


@app.command(epilog="Example: [bold]hamlet whiten runs/folder/model.pt PHOTOS --learned --out pw.safetensors[/bold]")
def whiten(
    model: ModelArgument,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder or list of images, other than those to be searched.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write, for hamlet evaluate --whiten.")],
    learned: Annotated[
        bool,
        typer.Option(
            "--learned",
            help="Learn from pairs that show the same thing, rather than by PCA: IMAGES is then a folder with a "
            "subfolder for each thing, or a CSV file with the columns image and label.",
        ),
    ] = False,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers a descriptor; default: all there are.")] = None,
    multi_scale: MultiScale = False,
    scales: Scales = None,
    longest_side: Side = 1024,
) -> None:
    """Learn how to whiten a model's descriptors. A run that was stopped goes on where it was."""
    from hamlet.retrieval.search import make_whitening

    made, failures = make_whitening(
        model,
        images,
        out,
        learned=learned,
        dim=dim,
        longest_side=longest_side,
        scales=chosen_scales(multi_scale, scales),
    )
    kept, dims = made.projection.shape
    typer.echo(f"{out}: {dims} to {kept} numbers, {len(failures)} images left out")

"""`hamlet index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import DescriptorType, ModelArgument, MultiScale, Side, Whiten


@app.command(epilog="Example: [bold]hamlet index runs/folder/model.pt PHOTOS --out photos.index[/bold]")
def index(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a text file that lists them.")],
    out: Annotated[Path, typer.Option(help="The index file to write.")],
    factory: Annotated[str, typer.Option(help="What faiss.index_factory takes: Flat, HNSW32, IVF256,PQ64...")] = "Flat",
    multi_scale: MultiScale = False,
    whiten: Whiten = None,
    longest_side: Side = 1024,
    dtype: DescriptorType = "float32",
) -> None:
    """Describe every image of a folder and build an index of them.

    A run that was stopped goes on where it was. Images that cannot be read are listed with the reason and left out.

    The index remembers how it was made, and [bold]hamlet search[/bold] does the same to the queries.

    Under [bold]torchrun[/bold] the processes share the images.
    """
    from hamlet.retrieval.extraction import SCALES
    from hamlet.retrieval.search import build_index

    made, failures = build_index(
        model,
        folder,
        out,
        factory=factory,
        longest_side=longest_side,
        scales=SCALES if multi_scale else (1.0,),
        whiten=whiten,
        dtype=dtype,
    )
    typer.echo(f"{out}: {len(made)} images, {len(failures)} left out")

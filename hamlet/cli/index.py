"""`hamlet index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import DescriptorType, ModelArgument, MultiScale, Nprobe, Scales, Side, Whiten, chosen_scales
from hamlet.cli.output import print_table

if TYPE_CHECKING:
    from hamlet.retrieval.recall import Check


@app.command(
    epilog="Examples: [bold]hamlet index runs/folder/model.pt PHOTOS --out photos.index[/bold]  |  "
    "[bold]hamlet index runs/folder/model.pt PHOTOS --out photos.index --update[/bold]  |  "
    "[bold]hamlet index runs/folder/model.pt PHOTOS --store milvus://photos.db[/bold]"
)
def index(
    model: ModelArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of images, or a text file that lists them.")
    ],
    out: Annotated[Path | None, typer.Option(help="The index file to write.")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Keep the index in Milvus instead: milvus://FOLDER.db (Milvus Lite), milvus://HOST:PORT/COLLECTION, "
            "or the same with http or https; a token is read from MILVUS_TOKEN."
        ),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="What faiss.index_factory takes: Flat (default), HNSW32, IVF256,PQ64...")
    ] = None,
    multi_scale: MultiScale = False,
    scales: Scales = None,
    whiten: Whiten = None,
    longest_side: Side = 1024,
    dtype: DescriptorType = "float32",
    nprobe: Nprobe = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Keep the index: describe only images that are new or have changed, remove those that are gone.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Print recall and queries a second beside those of exact search (Flat)."),
    ] = False,
) -> None:
    """Describe every image of a folder and build an index of them.

    A run that was stopped goes on where it was. Images that cannot be read are listed with the reason and left out.

    The index remembers how it was made, and [bold]hamlet search[/bold] does the same to the queries.

    Under [bold]torchrun[/bold] the processes share the images.
    """
    from hamlet.retrieval.milvus_connection import Address
    from hamlet.retrieval.search import build_index

    if (out is None) == (store is None):
        raise typer.BadParameter("give one of --out and --store", param_hint="--out")
    place = out or str(Address.parse(str(store)))
    made = build_index(
        model,
        folder,
        place,
        factory=factory,
        longest_side=longest_side,
        scales=chosen_scales(multi_scale, scales),
        whiten=whiten,
        dtype=dtype,
        nprobe=nprobe,
        update=update,
        check=check,
    )
    changed = f"{made.added} added, {made.removed} removed, " if update else ""
    typer.echo(f"{place}: {len(made.index)} images, {changed}{len(made.failures)} left out")
    if made.check is not None:
        show_check(made.index.factory, made.check)


def show_check(factory: str, check: Check) -> None:
    columns = ("", *(f"recall@{k}" for k in check.recall), "queries/s")
    rows = [
        (factory, *(f"{value:.4f}" for value in check.recall.values()), f"{check.queries_per_second:,.1f}"),
        ("exact search", *("1.0000" for _ in check.recall), f"{check.exact_queries_per_second:,.1f}"),
    ]
    print_table(f"{check.queries} of its images as queries", columns, rows)

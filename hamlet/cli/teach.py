"""`hamlet teach`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hamlet.cli.commands import app
from hamlet.cli.output import warn_in_one_line


@app.command(
    epilog="Example: [bold]hamlet teach CLIP PHOTOS --out runs/teacher[/bold], then "
    "[bold]hamlet train folder data.root=PHOTOS data.teacher=runs/teacher[/bold]"
)
def teach(
    teacher: Annotated[Path, typer.Argument(help="Folder of a CLIP model, in transformers' or open_clip's format.")],
    pictures: Annotated[Path, typer.Argument(help="The folder of training pictures, as data.root of a recipe.")],
    out: Annotated[Path, typer.Option(help="Folder of the cache, for data.teacher of a recipe.")],
    kind: Annotated[
        Literal["folder", "landmarks"],
        typer.Option(help="As data.kind of a recipe; landmarks (of train_clean.csv) need --prototypes none."),
    ] = "folder",
    captions: Annotated[
        Path | None, typer.Option(help='JSON lines {"image": "cats/1.jpg", "caption": "A cat"} of any model.')
    ] = None,
    prototypes: Annotated[
        Literal["classes", "captions", "none"],
        typer.Option(help="What the teacher's outputs are over: classes (folder names), captions, or none."),
    ] = "classes",
    template: Annotated[str, typer.Option(help="Text about a class, with {} for its name.")] = "a photo of a {}",
) -> None:
    """Keep what a CLIP model says of pictures, for training to follow. A run that was stopped goes on."""
    from hamlet.retrieval.datasets import load_landmark_training
    from hamlet.training import read_captions
    from hamlet.training.teach import teach as make

    if kind == "landmarks" and prototypes != "none":
        raise ValueError(f"prototypes: got {prototypes}, expected none with landmarks, whose folders are no classes")
    described = read_captions(captions) if captions is not None else None
    images = load_landmark_training(pictures).images if kind == "landmarks" else pictures
    cache, failures = make(teacher, images, out, captions=described, prototypes=prototypes, template=template)
    for name, reason in failures:
        warn_in_one_line(f"{name}: {reason}; left out")
    count, width = cache.embeddings.shape
    texts = 0 if cache.prototypes is None else len(cache.prototypes)
    captioned = "" if cache.captions is None else f"{int(cache.captions.any(1).sum())} captions, "
    typer.echo(f"{out}: {count} embeddings of {width} numbers, {captioned}{texts} prototypes, by {cache.name}")
